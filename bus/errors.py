"""What can go wrong between a caller and its answer: one class a wire code.

A code is stable: it stands in reply frames, in metrics and in logs, and a client in any language may branch on it. The
message says who must act and what to change.
"""

from __future__ import annotations


class BusError(Exception):
    """Base of everything the bus raises; `code` is the stable wire code."""

    code: str = "error"


class BadFrame(BusError):
    """The payload is not a frame: not a MessagePack or JSON map of the documented shape. The sender must change it."""

    code = "bad_frame"


class BadVersion(BusError):
    """The frame is of a version this worker does not speak. Upgrade the worker, or send version 1."""

    code = "bad_version"


class BadColumn(BusError):
    """A column is missing, unknown, or of the wrong dtype, rank, shape or length. The caller must change it."""

    code = "bad_column"


class BadParameter(BusError):
    """A parameter is missing, unknown, or outside what is allowed. The caller must change it."""

    code = "bad_parameter"


class BadValue(BusError):
    """A value of this row is not allowed (NaN where a model takes floats, bytes that are not UTF-8)."""

    code = "bad_value"


class NoTensor(BusError):
    """No tensor lies under this key: it has expired, was freed, or went with its worker. Put it again."""

    code = "no_tensor"


class NotOwner(BusError):
    """A tensor was put by another: only who put it may replace or free it. Ask its owner, or put one of your own."""

    code = "not_owner"


class OutOfStep(BusError):
    """Numbered rows must come one after the other, and this one does not follow. Send again from the number expected.

    Attributes:
        expected: that number; the message begins with it, so that it reaches clients in any language.
    """

    code = "out_of_step"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        first = message.partition(" ")[0]
        self.expected = int(first) if first.isdecimal() else 1


class NotWritten(BusError):
    """The worker cannot write down what it is to keep; the message says why. Its operator must make room."""

    code = "not_written"


class BadReply(BusError):
    """The reply subject is outside the prefixes this worker may answer to, so the frame is counted and dropped."""

    code = "bad_reply"


class TooLarge(BusError):
    """A row or frame is larger than a limit named in the message. The caller must send less at once."""

    code = "too_large"


class Busy(BusError):
    """The worker's queue is full. Nothing was run; the caller may try again after `retry_after_s` seconds."""

    code = "busy"

    def __init__(self, message: str, retry_after_s: float = 0.01) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDown(Busy):
    """The worker's engine is being started again, and there is no other. Nothing was run; another worker may do it."""

    code = "engine_down"


class Moved(Busy):
    """The key is another process's, or on its way to one. Nobody knows whether the call was applied but that process.

    Calls of agents with state are sent again by themselves, and applied once.
    """

    code = "moved"

    def __init__(self, message: str, retry_after_s: float = 0.02) -> None:
        super().__init__(message, retry_after_s)


class Forgotten(BusError):
    """A call was sent again so late that nobody knows any more whether it was applied. Ask for the state."""

    code = "forgotten"


class Expired(BusError):
    """The deadline passed before the answer came. A row may still have been run."""

    code = "expired"


class Cancelled(BusError):
    """The caller withdrew the row before it was run."""

    code = "cancelled"


class OperationFailed(BusError):
    """The operation raised while it ran. Its author must act; the worker's log holds the traceback."""

    code = "operation_failed"


class EngineLost(BusError):
    """The engine process ended before it answered. A pure operation may simply be called again."""

    code = "engine_lost"


class NoWorker(BusError):
    """No worker serves this operation on this bus: start one, or correct the operation's name."""

    code = "no_worker"


class Disconnected(BusError):
    """The connection was lost while a call that is not idempotent was under way; it may or may not have run."""

    code = "disconnected"


class Closed(BusError):
    """The connection was closed by this process."""

    code = "closed"


class ConnectionFailed(BusError):
    """The server refused or could not be reached in the way the settings demand (address, credentials, TLS)."""

    code = "connection_failed"


class Refused(BusError):
    """The worker is set not to do this; the message names the setting. Its operator must act."""

    code = "refused"


class ServerFailed(BusError):
    """The embedded nats-server is missing or did not start; the message names the remedy."""

    code = "server_failed"


class BadMessage(BusError):
    """A message, or a reply, is not what its handler declares; the text names the field. Whoever made it must act."""

    code = "bad_message"


class NoHandler(BusError):
    """The agent is there and has no handler of this name; the message lists those it has. The caller must change it."""

    code = "no_handler"


class WrongKind(BusError):
    """A handler that streams was called for one reply, or the other way round. The caller must change it."""

    code = "wrong_kind"


class CallCycle(BusError):
    """A chain of calls came back to a handler that waits for it; the message has the path. Their authors must act."""

    code = "call_cycle"


class HandlerFailed(BusError):
    """The agent's handler raised. Its author must act; the agent's log holds the traceback."""

    code = "handler_failed"


class Declined(BusError):
    """An agent declined for a reason of its own, and this is its code: raise it in a handler.

    Args:
        code: the agent's own, stable; callers may branch on it.
        message: who must act, and what to change.
    """

    code = "declined"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_BY_CODE: dict[str, type[BusError]] = {cls.code: cls for cls in BusError.__subclasses__() if cls is not Declined} | {
    EngineDown.code: EngineDown,
    Moved.code: Moved,
}


def from_wire(code: str, message: str) -> BusError:
    """Make the exception for an error that a reply frame carries; an unknown code gives a plain `BusError`."""
    return _BY_CODE.get(code, BusError)(message)
