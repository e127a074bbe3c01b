"""How often each expert was used in each layer, as a heat map beside the busiest of each layer."""

import math

import numpy as np
import numpy.typing as npt

from janus_hpc.results.report.axes import (
    LEFT,
    WIDE_WIDTH,
    Plot,
    draw_axes,
    figure,
    plot_area,
    sentence,
    ticks,
    whole_ticks,
)
from janus_hpc.results.report.png import data_address
from janus_hpc.results.report.svg import element, label, line, number, rect
from janus_hpc.results.stats import LayerStats

# Legend: L MoE layers, E experts.

_HEAT_RIGHT, _BAR_LEFT, _BAR_RIGHT = 600.0, 650.0, WIDE_WIDTH - 44
# Blue to orange over white, told apart with every colour vision; 255 is "never chosen".
_ANCHORS = ((5, 48, 97), (67, 147, 195), (247, 247, 245), (244, 165, 70), (150, 60, 0))
_UNUSED = 255
_MAX_LOG2 = 3


def heat_map(layers: LayerStats | None) -> str:
    """Activations of every expert in every layer, as a multiple of the layer's mean."""
    title = "Tokens sent to each expert in each MoE layer, against an even share"
    if layers is None or not layers.expert_activations.sum():
        return sentence(title, "The run counted no expert activations.", wide=True)
    ratio_LE = share_ratios(layers.expert_activations)
    row_height = min(26.0, max(5.0, 260 / len(ratio_LE)))
    plot = _layers_plot(ratio_LE.shape, row_height)
    limit = min(max(math.ceil(np.log2(ratio_LE.max())), 1), _MAX_LOG2)
    drawing = "".join(
        [
            draw_axes(
                plot,
                "expert",
                "MoE layer",
                x_ticks=whole_ticks(0, ratio_LE.shape[1] - 1, 8),
                y_ticks=whole_ticks(0, len(ratio_LE) - 1, 6),
            ),
            _image(plot, ratio_LE, limit),
            _imbalance_bars(plot, ratio_LE, row_height),
            _colour_bar(plot.bottom + 58, limit),
        ]
    )
    return figure(title, drawing, plot.bottom + 94, wide=True, note=_heat_note(ratio_LE))


def share_ratios(activations_LE: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Each expert's tokens over the mean of its layer; 0 in layers without tokens."""
    mean_L1 = activations_LE.mean(axis=1, keepdims=True)
    ratio: npt.NDArray[np.float64] = activations_LE / np.where(mean_L1 > 0, mean_L1, 1)
    return ratio


def _layers_plot(shape: tuple[int, ...], row_height: float) -> Plot:
    num_layers, num_experts = shape
    return plot_area(
        (-0.5, num_experts - 0.5),
        (num_layers - 0.5, -0.5),
        right=_HEAT_RIGHT,
        top=30,
        bottom=30 + row_height * num_layers,
    )


def _image(plot: Plot, ratio_LE: npt.NDArray[np.float64], limit: int) -> str:
    with np.errstate(divide="ignore"):
        level_LE = np.clip(np.log2(ratio_LE), -limit, limit)
    cells_LE = np.round((level_LE + limit) / (2 * limit) * (_UNUSED - 1)).astype(np.uint8)
    cells_LE[ratio_LE == 0] = _UNUSED
    address = data_address(cells_LE, _colours())
    return element(
        "image",
        href=address,
        x=plot.x.start,
        y=plot.top,
        width=plot.x.stop - plot.x.start,
        height=plot.bottom - plot.top,
        preserveAspectRatio="none",
        class_="pixels",
    )


def _colours() -> npt.NDArray[np.uint8]:
    at = np.linspace(0, len(_ANCHORS) - 1, _UNUSED)
    channels = [np.interp(at, range(len(_ANCHORS)), its) for its in zip(*_ANCHORS, strict=True)]
    used = np.round(np.stack(channels, axis=1))
    return np.vstack([used, [[60, 60, 60]]]).astype(np.uint8)


def _colour_bar(y: float, limit: int) -> str:
    left, width = LEFT, 240.0
    address = data_address(np.arange(_UNUSED, dtype=np.uint8)[None], _colours())
    parts = [
        element(
            "image",
            href=address,
            x=left,
            y=y,
            width=width,
            height=10,
            preserveAspectRatio="none",
            class_="pixels",
        )
    ]
    for at in range(-limit, limit + 1):
        name = f"{2**at}\u00d7" if at >= 0 else f"1/{2**-at}\u00d7"
        name = {-limit: f"\u2264\u2009{name}", limit: f"\u2265\u2009{name}"}.get(at, name)
        parts.append(
            label(left + width * (at + limit) / (2 * limit), y + 24, name, class_="tick middle")
        )
    parts.append(label(left + width + 26, y + 9, "times the even share", class_="tick"))
    parts.append(rect(left + width + 170, y, 10, 10, class_="unused"))
    parts.append(label(left + width + 186, y + 9, "never chosen", class_="tick"))
    return "".join(parts)


def _imbalance_bars(plot: Plot, ratio_LE: npt.NDArray[np.float64], row_height: float) -> str:
    """Beside each layer its busiest expert's share."""
    most_L = ratio_LE.max(axis=1)
    scale = (_BAR_RIGHT - _BAR_LEFT) / max(float(most_L.max()), 1.0)
    parts = [label(_BAR_LEFT, 18, "busiest expert", class_="tick strong")]
    for layer, most in enumerate(most_L.tolist()):
        top = plot.top + layer * row_height
        hint = f"layer {layer}: {number(most)} times the even share"
        parts.append(
            rect(_BAR_LEFT, top + 0.5, most * scale, row_height - 1, hint, class_="fill-b")
        )
        if row_height >= 12:
            text = f"{number(most)}\u00d7"
            parts.append(
                label(_BAR_LEFT + most * scale + 5, top + row_height / 2 + 4, text, class_="tick")
            )
    even = _BAR_LEFT + scale
    parts.append(line(even, plot.top, even, plot.bottom, class_="even"))
    if row_height < 12:
        for value in ticks(0, float(most_L.max()), 4):
            at = _BAR_LEFT + value * scale
            parts.append(
                label(at, plot.bottom + 18, f"{number(value)}\u00d7", class_="tick middle")
            )
    return "".join(parts)


def _heat_note(ratio_LE: npt.NDArray[np.float64]) -> str:
    layer, expert = np.unravel_index(int(ratio_LE.argmax()), ratio_LE.shape)
    never = int(np.count_nonzero(ratio_LE == 0))
    return (
        f"Busiest: expert {expert} of layer {layer} with {number(float(ratio_LE.max()))} times the"
        f" even share; in the mean layer the busiest has {number(float(ratio_LE.max(axis=1).mean()))}"
        f" times. Never chosen: {never:,} of {ratio_LE.size:,}. Layers count the MoE layers from 0."
    )
