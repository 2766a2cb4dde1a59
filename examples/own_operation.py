"""An operation of your own, run in batches like the built-in ones. A worker with it, and a call:

    aikoryu up --operations examples/own_operation.py
    aikoryu call demo.scale x='[1,2,3]' -p factor=3

The second prints {"y": [3.0, 6.0, 9.0]}. `x` is a torch tensor, (rows, ...), on the device the batch runs on.
"""

import aikoryu


@aikoryu.operation("demo.scale", inputs={"x": "T[...]"}, outputs={"y": "T[...]"}, types={"T": "f4|f8"})
def scale(x, *, factor: float = 2.0):
    """Each row's x times factor."""
    return {"y": x * factor}
