"""From the batcher's lists to the tensors every layer reads."""

import torch

from janus_hpc.batcher import StepBatch
from janus_hpc.engine.active import ActiveSample
from janus_hpc.layers.step import StepTokens
from janus_hpc.models.attention_model import AttentionModel

# Legend: T tokens, S sequences, M blocks of the longest sequence.


def build_tokens(batch: StepBatch[ActiveSample], model: AttentionModel) -> StepTokens:
    """Tensors of one step on the model's device; all of length 0 for an empty batch."""
    device = model.cos_Ph.device
    positions_T = torch.tensor(batch.positions, dtype=torch.int64, device=device)
    num_blocks = max((len(s.block_ids) for s in batch.sequences), default=0)
    padded = [s.block_ids + [0] * (num_blocks - len(s.block_ids)) for s in batch.sequences]
    tables_SM = torch.tensor(padded, dtype=torch.int32, device=device)
    return StepTokens(
        token_ids_T=torch.tensor(batch.token_ids, dtype=torch.int64, device=device),
        positions_T=positions_T.int(),
        sequence_ids_T=torch.tensor(batch.sequence_ids, dtype=torch.int32, device=device),
        slots_T=torch.tensor(batch.slots, dtype=torch.int64, device=device),
        block_tables_SM=tables_SM.view(len(batch.sequences), num_blocks),
        cos_Th=model.cos_Ph[positions_T],
        sin_Th=model.sin_Ph[positions_T],
    )
