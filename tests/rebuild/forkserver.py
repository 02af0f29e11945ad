"""A ``python`` that starts in milliseconds: forks of a process that has imported what every job of a workflow imports.

To import torch and Lightning costs three CPU seconds, which a matrix of real runs pays a few hundred times. Each command is
still a process of its own, with its own environment and working directory, and imports espnet3 from there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PRELOADED = (
    "numpy", "soundfile", "omegaconf", "hydra", "pydantic", "torch", "lightning.pytorch", "safetensors.torch", "lhotse",
    "snakemake.cli", "snakemake.api",
)  # fmt: skip

CLIENT = """#!{python} -SE
import json, os, socket, struct, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [struct.pack("!I", len(call))], [0, 1, 2])
link.sendall(call)
answer = link.recv(4)
os._exit(struct.unpack("!i", answer)[0] if len(answer) == 4 else 1)
"""


@contextlib.contextmanager
def forked_python() -> Iterator[Path]:
    """The path of an executable that takes ``-m module arguments``, as Python does."""
    with tempfile.TemporaryDirectory(prefix="espnet3-") as folder:
        address = os.path.join(folder, "socket")
        client = Path(folder, "python")
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        server = subprocess.Popen([sys.executable, __file__, address, str(client)], cwd=folder)
        try:
            while not os.path.exists(address):
                assert server.poll() is None, "the fork server ended"
                time.sleep(0.05)
            yield client
        finally:
            server.terminate()
            server.wait()


def serve(address: str, client: str) -> None:
    """Fork for each connection, for ever."""
    for name in PRELOADED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    os.rename(address + ".new", address)
    gc.collect()
    # what is frozen is not written to by the children's collections, and stays shared
    gc.freeze()
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _child(link, client)
        link.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _child(link: socket.socket, client: str) -> None:
    head, descriptors, _, _ = socket.recv_fds(link, 4, 3)
    (length,) = struct.unpack("!I", head)
    call = b""
    while len(call) < length:
        call += link.recv(length - len(call))
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    link.set_inheritable(False)
    code = _run(*json.loads(call), client)
    with contextlib.suppress(OSError):
        link.sendall(struct.pack("!i", code & 0xFF))
    os._exit(code)


def _run(arguments: list[str], folder: str, environment: dict[str, str], client: str) -> int:
    import atexit
    import runpy
    import threading

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, buffering=1, closefd=False) for n, mode in enumerate("rww"))
    sys.executable = client
    assert arguments[0] == "-m", arguments
    sys.argv = arguments[1:]
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    code: object = 0
    try:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code or 0)


if __name__ == "__main__":
    serve(*sys.argv[1:])
