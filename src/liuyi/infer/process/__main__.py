"""`python -m liuyi.infer.process FD`: open the engine that the first message on a socket names, and serve it."""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import sys
import threading

from liuyi.core.errors import LiuyiError, OutOfMemory
from liuyi.infer.errors import EngineError
from liuyi.infer.process.channel import Channel
from liuyi.infer.process.messages import Unusable


def main() -> None:
    """Serve until the owner says Stop or is gone. Signals that end the owner's group are the owner's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    spec = channel.receive_spec()
    if spec is None:
        return
    try:
        from liuyi.infer.process.open import open_engine
        from liuyi.infer.process.worker import Worker

        engine = open_engine(spec)
    except LiuyiError as error:
        channel.send(Unusable(error))
        channel.close()
        return
    except MemoryError as error:
        channel.send(Unusable(OutOfMemory(f"the model does not fit into memory: {error}")))
        channel.close()
        return
    except Exception as error:
        logging.getLogger("liuyi.infer").exception("the model cannot be opened")
        channel.send(Unusable(EngineError(f"the model cannot be opened: {type(error).__name__}: {error}")))
        channel.close()
        return
    # To search all that is loaded for garbage takes 50 ms, in which nobody is given a token: once now, and never again.
    gc.collect()
    gc.freeze()
    # Whatever the engine is doing: nobody is left to hear of it.
    Worker(engine, channel, gone=lambda: os._exit(0)).run()


def end_with_owner(number: int) -> None:
    """End this process once the other end of socket `number` is closed: to load a large model can take minutes."""
    poll = select.poll()
    poll.register(number, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_owner, args=(int(sys.argv[1]),), daemon=True).start()
    main()
