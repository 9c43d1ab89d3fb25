"""A watch over ranks: a rank that dies or stands still would leave the others waiting for ever.

Each rank has a thread that writes down once a second, in the store that torchrun keeps, in which step and stage it is;
rank 0 reads these notes, the others read rank 0's, and the first to see that a rank is missing names it and ends the
job (docs/decisions/0012).
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

STAGES = (
    "preparing",
    "reading pairs",
    "encoding",
    "loss",
    "backward",
    "update",
    "agreeing",
    "saving",
    "measuring",
    "finished",
)
"""What a rank does in a step, in this order."""


UNHURRIED = ("preparing", "saving", "measuring", "finished")
"""Stages that may take as long as they take: reading a dataset's index, writing to a slow disk, measuring."""


SILENCE_SECONDS = 15.0
"""A rank whose thread wrote nothing for this long is dead: the thread has nothing else to do."""


class Stopped(KeyboardInterrupt):
    """All ranks agreed to stop because one was asked to."""


class Watch:
    """A thread that notes where this rank is and ends the process when another one is lost."""

    def __init__(self, rank: int, size: int, patience_seconds: float) -> None:
        self.rank, self.size, self.patience = rank, size, patience_seconds
        self._beat = 0
        self.at(-1, "preparing")
        self._over = threading.Event()
        # a connection of its own: the group's blocks while it waits
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=SILENCE_SECONDS),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"limner/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{attempt}", store)
        self._heard: dict[int, tuple[dict[str, Any], float]] = {}
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def at(self, step: int, stage: str) -> None:
        """This rank is in `stage` of `step`."""
        self._place: dict[str, Any] = {"step": step, "stage": stage, "since": time.monotonic()}

    def fail(self, error: BaseException) -> None:
        """This rank ends with `error`. If that came from a lost connection, wait for the name of who lost it."""
        if isinstance(error, Stopped):
            return self.at(sys.maxsize, "finished")
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "onnection" in str(error)):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which would come before the name
            self._over.wait(SILENCE_SECONDS + 5)  # the thread ends the process once it knows
        self._place = {**self._place, "error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        self._note()
        return None

    def end(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            self._note()
            lost = self._look()
            if lost and not self._over.is_set():
                self._place = {**self._place, "lost": lost}  # so that the others say the same
                self._note()
                print(f"limner: {lost}", file=sys.stderr, flush=True)
                os._exit(1)  # the main thread waits inside torch and cannot be woken

    def _note(self) -> None:
        self._beat += 1
        place = self._place | {"beat": self._beat}
        place["still"] = time.monotonic() - place.pop("since")
        with suppress(RuntimeError):  # a store that is gone is noticed where it is read
            self._store.set(str(self.rank), json.dumps(place))

    def _look(self) -> str | None:
        """What is wrong, if something is."""
        now = time.monotonic()
        for other in range(self.size) if self.rank == 0 else (0, self.rank):
            try:
                note = json.loads(self._store.get(str(other))) if self._store.check([str(other)]) else {"beat": -1}
            except RuntimeError:
                note = {"beat": -1}
            before, heard = self._heard.get(other, ({}, now))
            if note["beat"] != before.get("beat"):
                before, heard = note, now
            self._heard[other] = (before, heard)
        return find_lost(
            {rank: (place, now - heard) for rank, (place, heard) in self._heard.items()},
            size=self.size,
            patience=self.patience,
        )


def find_lost(heard: dict[int, tuple[dict[str, Any], float]], *, size: int, patience: float) -> str | None:
    """Which rank is lost, and where, from each rank's last note and the seconds since it came.

    A rank is lost when it ended with an error, when its thread is silent, or when it stands still at a place that
    another one has left behind, and that one has waited for as long.
    """

    def where(place: dict[str, Any]) -> str:
        if place.get("step", -1) < 0:
            return "the start"
        return "the end" if place["stage"] == "finished" else f"step {place['step']}, {place['stage']}"

    ends = "limner resume RUN continues from the last checkpoint; torchrun --max-restarts 3 does so by itself."
    for rank, (place, silent) in heard.items():
        if "lost" in place:
            return place["lost"]
        if "error" in place:
            return f"Rank {rank} of {size} must go on. Got {place['error']} in {where(place)}. {ends}"
        if silent > SILENCE_SECONDS and place.get("stage") != "finished":
            return f"Rank {rank} of {size} must be alive. Got no sign for {silent:.0f} s after {where(place)}. {ends}"
    places = {rank: place for rank, (place, _) in heard.items() if "step" in place}
    if len(places) < 2:
        return None

    def progress(place: dict[str, Any]) -> tuple[int, int]:
        return place["step"], STAGES.index(place["stage"])

    rank, last = min(places.items(), key=lambda item: progress(item[1]))
    waits = [place["still"] for place in places.values() if progress(place) > progress(last)]
    if waits and last["stage"] not in UNHURRIED and min(last["still"], max(waits)) > patience:
        return (
            f"Rank {rank} of {size} must not stand still. Got {last['still']:.0f} s in {where(last)} while another "
            f"waits. Lengthen --train.patience-seconds if it was only slow. {ends}"
        )
    return None
