"""What was made lately and may be wanted again, in bounded memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Kept:
    """Values by key, the last ones used, up to `most_bytes`; made once, by one thread at a time."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock, self._making = threading.Lock(), threading.Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of `key`, something with `nbytes`; `make` makes it if it is not kept."""
        if (value := self._kept(key)) is not None:
            return value
        with self._making:
            if (value := self._kept(key)) is not None:
                return value
            value = make()
            with self._lock:
                self._values[key] = value
                self.bytes += value.nbytes
                while self.bytes > self.most_bytes and len(self._values) > 1:
                    self.bytes -= self._values.popitem(last=False)[1].nbytes
        return value

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def _kept(self, key: Any) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)
