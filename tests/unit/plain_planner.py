"""The planner's model and searches in plain loops, from its documented formulas alone: an oracle for tests."""

import math
from dataclasses import dataclass

from janus_hpc.plan.request import Request
from janus_hpc.planner.profile_data import Profile
from janus_hpc.planner.search import Workload
from janus_hpc.planner.system import System

WORK = Workload(num_rows=40, mean_prompt=30.0, mean_new=20.0)


@dataclass(frozen=True)
class Candidate:
    """One split, in plain numbers."""

    n_a: int
    n_e: int
    slots: int
    colocated: bool

    @property
    def ranks(self) -> int:
        return self.n_a if self.colocated else self.n_a + self.n_e


@dataclass(frozen=True)
class Plain:
    """The model of one system, one candidate and one number of tokens at a time."""

    system: System

    def candidates(self, most: int) -> list[Candidate]:
        num_experts = self.system.experts.model.num_experts
        found = []
        for n_e in range(1, min(num_experts, most) + 1):
            fewest = math.ceil(num_experts / n_e)
            spare = min(num_experts, max(fewest, math.floor(1.25 * num_experts / n_e)))
            twice = min(num_experts, 2 * fewest) if n_e > 1 else fewest
            for slots in sorted({fewest, spare, twice}):
                found += [Candidate(n_a, n_e, slots, False) for n_a in range(1, most - n_e + 1)]
                if self.system.attention is self.system.experts:
                    found.append(Candidate(n_e, n_e, slots, True))
        return found

    def coefficient(self, profile: Profile, sets: tuple, sharing: int, get) -> float:
        known = [its.num_sharing for its in sets]
        values = [get(its) for its in sets]
        if sharing >= known[-1]:
            value = values[-1]
        elif sharing <= known[0]:
            value = values[0]
        else:
            at = max(i for i, its in enumerate(known) if its <= sharing)
            part = (sharing - known[at]) / (known[at + 1] - known[at])
            value = values[at] + part * (values[at + 1] - values[at])
        cores = profile.hardware.cores_per_node
        return value * max(sharing / max(known[-1], cores), 1.0) if cores else value

    def tpot(self, c: Candidate, batch: int, context: float | None = None) -> float:
        asked = self.system.microbatches
        able = [m for m in asked if m == 1 or (m <= batch and not c.colocated)] or [1]
        return min(self.with_microbatches(c, max(batch, 1), m, context) for m in able)

    def with_microbatches(self, c: Candidate, tokens: int, m: int, context: float | None) -> float:
        system, profile = self.system, self.system.attention
        b = math.ceil(tokens / c.n_a)
        behind = system.context.mean if context is None else context
        if context is None and system.context.std:
            share = (c.n_a - 0.375) / (c.n_a + 0.25)
            slowest = max(math.log(share / (1 - share)) / 1.702, 0.0)
            behind += slowest * system.context.std / math.sqrt(b)
        size = system.node_size
        alone_A, alone_E = min(c.n_a, size), min(c.n_e, size)
        together = min(c.ranks, size)
        sharing_A, sharing_E = (together, together) if m > 1 else (alone_A, alone_E)

        def layer(kind: str, sharing: int, b: float) -> float:
            def of(name: str) -> float:
                return self.coefficient(
                    profile,
                    profile.attention,
                    sharing,
                    lambda its: getattr(getattr(its, kind), name),
                )

            return max(of("c_a"), of("c_0") + of("alpha") * b + of("c_kv") * b * behind)

        def head(name: str) -> float:
            return self.coefficient(
                profile, profile.attention, alone_A, lambda its: getattr(its, name)
            )

        rest = head("head_0") + head("head_1") * b
        rest += profile.model.num_dense_layers * layer("dense", alone_A, b)
        attention = layer("sparse", sharing_A, b / m)
        experts = self.experts(c, sharing_E, tokens / m, b / m)
        comm = self.exchange(c, b / m, tokens / m)
        layers = profile.model.num_sparse_layers
        busiest = max(attention, experts, comm / 2)
        whole = attention + experts + comm
        period = max(m * busiest, whole)
        if math.isinf(comm):
            return math.inf
        return rest + whole + (layers - 1) * period + (m - 1) * busiest

    def experts(self, c: Candidate, sharing: int, tokens: float, b: float) -> float:
        profile = self.system.experts

        def of(name: str) -> float:
            return self.coefficient(
                profile, profile.experts, sharing, lambda its: getattr(its, name)
            )

        a_max = float(self.system.a_max.a_max(c.n_e, c.slots, tokens))
        rows = tokens * profile.model.top_k / c.n_e
        gated = tokens if self.system.gate == "egate" else b
        return of("c_e") + of("beta") * a_max + of("gamma") * rows + of("delta") * gated

    def nodes(self, c: Candidate) -> tuple[list[int], list[int]]:
        """The nodes of attention and of expert ranks, node by node."""
        size = self.system.node_size
        attention = [r // size for r in range(c.n_a)]
        first = 0 if c.colocated else c.n_a
        return attention, [r // size for r in range(first, first + c.n_e)]

    def is_one_node(self, c: Candidate) -> bool:
        attention, experts = self.nodes(c)
        return len(set(attention + experts)) == 1

    def exchange(self, c: Candidate, b: float, tokens: float) -> float:
        system = self.system
        coefs, model, size = system.attention.exchange, system.attention.model, system.node_size
        attention, experts = self.nodes(c)
        local_A, local_E = min(c.n_a, size), min(c.n_e, size)
        inside = coefs.fixed_s + coefs.per_rank_s * min(c.ranks, size)
        inside += coefs.per_row_s * tokens + coefs.per_part_s * b * local_E
        if c.ranks == 1:
            inside = 0.0
        if self.is_one_node(c):
            return inside
        if not coefs.node_rate:
            return math.inf
        there, back = float(model.row_bytes), 8.0 * model.hidden
        if system.gate == "agate":
            there, back = model.top_k * (there + 12), model.top_k * back
        num_nodes_E, num_nodes_A = len(set(experts)), len(set(attention))
        others = max(num_nodes_E - (1 if c.colocated else 0), 1)
        away = max(c.n_e - (local_E if c.colocated else 0), 1)
        depth = math.ceil(math.log2(others))
        rows = b * local_A
        if system.gate == "agate":
            one_phase = max(rows, tokens / num_nodes_E)
        else:
            one_phase = max(rows * away, tokens * local_E)
        kinds = {
            "direct": (max(others, num_nodes_A), max(rows * others, tokens)),
            "relay": (1 + depth, max(rows * (1 + depth), tokens)),
            "one-phase": (max(c.n_a, c.n_e), one_phase),
        }
        return inside + min(
            2 * coefs.message_s * kinds[kind][0] + kinds[kind][1] * (there + back) / coefs.node_rate
            for kind in system.kinds
        )

    def rank_bytes(self, c: Candidate, b: int, batch: int) -> tuple[float, float]:
        """Of an attention and an expert rank, cache included."""
        system, model = self.system, self.system.attention.model
        row = 4 * (model.row_bytes + 8 * model.hidden)
        shared = 1
        if system.attention.hardware.cores_per_node:
            # As many as the emptiest node has.
            shared = c.n_a % system.node_size or min(c.n_a, system.node_size)
        attention = model.attention_bytes / shared + row * system.max_step_tokens
        tokens = b * system.context.mean + 2.33 * system.context.std * math.sqrt(b)
        attention += tokens * model.kv_bytes
        experts = c.slots * model.expert_bytes * model.num_sparse_layers + model.gate_bytes
        experts += row * max(batch, c.n_a * system.max_step_tokens)
        return attention, experts

    def most(self, c: Candidate) -> int:
        has_A = self.system.attention.hardware.memory_bytes
        has_E = self.system.experts.hardware.memory_bytes
        fitting = 0
        for b in range(1, self.system.max_sequences + 1):
            attention, experts = self.rank_bytes(c, b, 0)
            needed = attention + (experts if c.colocated else 0)
            if experts <= has_E and needed <= has_A:
                fitting = b
        return fitting * c.n_a

    def cost(self, c: Candidate) -> float:
        price_A = self.system.attention.hardware.price
        price_E = self.system.experts.hardware.price
        return c.n_a * price_A + (0 if c.colocated else c.n_e * price_E)

    def load_s(self, c: Candidate) -> float:
        """The fullest node's, rank by rank."""
        attention, experts = self.nodes(c)
        model, profiles = self.system.attention.model, (self.system.attention, self.system.experts)
        slots = c.slots * model.expert_bytes * model.num_sparse_layers + model.gate_bytes
        worst = 0.0
        for node in set(attention + experts):
            copies = attention.count(node)
            if profiles[0].hardware.cores_per_node:
                copies = min(copies, 1)
            seconds = copies * model.attention_bytes / profiles[0].loading.checkpoint_rate
            seconds += experts.count(node) * slots / profiles[1].loading.checkpoint_rate
            worst = max(worst, seconds)
        return worst + max(its.loading.join_s for its in profiles)

    def job_s(self, c: Candidate, batch: int) -> float:
        full = c.n_a * self.system.max_step_tokens
        prefill = WORK.num_rows * WORK.mean_prompt / full
        decode = max(WORK.num_rows * WORK.mean_new / batch, WORK.mean_new)
        return (
            prefill * self.tpot(c, full, WORK.mean_prompt / 2)
            + decode * self.tpot(c, batch)
            + self.load_s(c)
        )

    def steady(self, c: Candidate, rate: float) -> int:
        """The smallest batch that makes the rate."""
        fits = (b for b in range(1, self.most(c) + 1) if b >= rate * self.tpot(c, b))
        return next(fits, 0)

    def within(self, c: Candidate, slo_s: float, most: int) -> int:
        """The largest batch whose step is within the SLO."""
        fits = [b for b in range(1, most + 1) if self.tpot(c, b) * self.system.slo_ratio <= slo_s]
        return max(fits, default=0)

    def best(self, request: Request) -> tuple[tuple[float, ...], Candidate, int] | None:
        """Key, candidate and batch of the best, by the documented order."""
        found = []
        for c in self.candidates(request.most_ranks):
            if request.objective == "rate":
                batch = self.steady(c, request.rate)
            else:
                most = self.most(c)
                if request.objective in ("fastest", "cheapest"):
                    most = min(most, WORK.num_rows)
                batch = self.within(c, request.slo_s, most)
            tpot_s, cost = self.tpot(c, max(batch, 1)), self.cost(c)
            within = tpot_s * self.system.slo_ratio <= request.slo_s
            if not batch or not within or math.isinf(tpot_s):
                continue
            if request.objective == "rate":
                key = (cost, tpot_s, tpot_s)
            elif request.objective == "speed":
                key = (-batch / tpot_s, cost, tpot_s)
            else:
                took_s = self.job_s(c, batch)
                if took_s > request.deadline_s:
                    continue
                is_fixed = request.objective == "fastest"
                key = (took_s, cost, tpot_s) if is_fixed else (took_s * cost, tpot_s, tpot_s)
            found.append(((*key, c.n_a, c.slots), c, batch))
        return min(found, key=lambda its: its[0]) if found else None
