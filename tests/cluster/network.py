"""Lays and reads the links between the nodes of a bed, with ip and tc; knows nothing of MPI.

Each node has two veths, each in a bridge at the switch: `mgmt0` at full speed, for the launcher, and
`data0` at the bed's rate in both directions, for messages.
"""

import json
import subprocess

MGMT_NET = "10.77.0"
DATA_NET = "10.77.1"
SWITCH_ADDRESS = f"{MGMT_NET}.254"
# Jumbo frames as on a data network; one frame at least must fit in the bucket.
MTU = {"mgmt": 1500, "data": 9000}
# A bucket (in kilobytes) as small as keeps the rate, since an idle link passes that much at once, and a queue
# that holds all that TCP may have under way, since the fabrics of clusters do not drop.
BURST_KB = 20
QUEUE_MB = 64
TOOL_TIMEOUT_S = 20


def lay_links(switch_pid: int, node_pids: list[int], rate: str) -> None:
    """Connect the nodes to the switch; RuntimeError with the tool's message where a step fails."""
    steps = [f"addr add {SWITCH_ADDRESS}/24 dev mgmt"]
    for name in ("mgmt", "data"):
        steps = [f"link add {name} type bridge", f"link set {name} up", *steps]
        for i, pid in enumerate(node_pids):
            steps += [
                f"link add {name}{i} type veth peer name {name}0 netns {pid}",
                f"link set {name}{i} mtu {MTU[name]}",
                f"link set {name}{i} master {name} up",
            ]
    _run(switch_pid, ["ip", "-batch", "-"], steps)
    for i, pid in enumerate(node_pids):
        _run(pid, ["ip", "-batch", "-"], _node_steps(i))
        _run(pid, ["tc", "-batch", "-"], [_shape("data0", rate)])
    _run(
        switch_pid, ["tc", "-batch", "-"], [_shape(f"data{i}", rate) for i in range(len(node_pids))]
    )


def node_address(node: int) -> str:
    """The node's address on the management network."""
    return f"{MGMT_NET}.{node + 1}"


def set_data_link(switch_pid: int, node: int, *, up: bool) -> None:
    """Plug the node's data cable in, or pull it, at the switch's end."""
    _run(switch_pid, ["ip", "link", "set", f"data{node}", "up" if up else "down"])


def set_data_rate(switch_pid: int, node: int, rate: str) -> None:
    """Give what comes to the node over its data link another rate."""
    shape = _shape(f"data{node}", rate).replace(" add ", " replace ", 1)
    _run(switch_pid, ["tc", "-batch", "-"], [shape])


def data_bytes(switch_pid: int, node: int) -> tuple[int, int]:
    """Bytes the node has sent and received over its data link, frame headers included."""
    shown = _run(switch_pid, ["ip", "-stats", "-json", "link", "show", f"data{node}"])
    counted = json.loads(shown)[0]["stats64"]
    return counted["rx"]["bytes"], counted["tx"]["bytes"]


def _node_steps(node: int) -> list[str]:
    steps = []
    for name, net in (("mgmt", MGMT_NET), ("data", DATA_NET)):
        steps += [
            f"link set {name}0 mtu {MTU[name]} up",
            f"addr add {net}.{node + 1}/24 dev {name}0",
        ]
    return steps


def _shape(device: str, rate: str) -> str:
    return f"qdisc add dev {device} root tbf rate {rate} burst {BURST_KB}kb limit {QUEUE_MB}mb"


def _run(pid: int, command: list[str], steps: list[str] | None = None) -> str:
    """Run ip or tc in the network of a process; `steps` are the lines of a batch."""
    done = subprocess.run(
        ["nsenter", "--target", str(pid), "--net", "--", *command],
        input="\n".join(steps or []) + "\n",
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"'{' '.join(command)}' failed: {done.stderr.strip()}")
    return done.stdout
