"""A selector for `selectors` on evloopd: level-triggered, made of Poll with a fence, and Rearm."""
import errno
import itertools
import math
import os
import selectors
import time

from google.protobuf.duration_pb2 import Duration

from evloopd.v1 import common_pb2 as common
from evloopd.v1 import event_pb2
from evloopd.v1 import event_service_pb2 as events
from evloopd.v1 import event_service_pb2_grpc as events_grpc
from evloopd.v1 import loop_service_pb2 as loops
from evloopd.v1 import loop_service_pb2_grpc as loops_grpc
from evloopd.v1 import policy_service_pb2 as policies
from evloopd.v1 import policy_service_pb2_grpc as policies_grpc
from evloopd.v1 import watch_service_pb2 as watches
from evloopd.v1 import watch_service_pb2_grpc as watches_grpc

NUMBERS = itertools.count()
LONGEST_WAIT = 3600


class Selector(selectors.BaseSelector):
    """A selector on a loop of its own. The loop keeps no history, because no event is read twice.

    `hand_over` gives a duplicate of a descriptor to the daemon and returns its slot.
    """

    def __init__(self, channel, hand_over):
        self.hand_over = hand_over
        self.watches = watches_grpc.WatchServiceStub(channel)
        self.events = events_grpc.EventServiceStub(channel)
        self.loops = loops_grpc.LoopServiceStub(channel)
        new = policies.NewEventLoopRequest(
            name=f"selector-{os.getpid()}-{next(NUMBERS)}", history=loops.HISTORY_NONE
        )
        made = policies_grpc.PolicyServiceStub(channel).NewEventLoop(new).loop
        self.loop = common.LoopRef(loop_id=made.loop_id)
        self.cursor = common.Cursor(epoch=made.journal.epoch, seq=made.journal.newest_seq)
        self.keys = {}  # descriptor: (key, watch id)
        self.fds = {}  # watch id: descriptor
        self.fired = {}  # watch id: seq of its last Ready; these are armed again by the next select
        self._poll([], 0)

    def register(self, fileobj, events, data=None):
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd in self.keys:
            raise KeyError(f"{fileobj!r} is already registered")
        spec = watches.FdSpec(slot=self.hand_over(fileobj), **directions(events))
        request = watches.AddWatchRequest(loop=self.loop, spec=watches.WatchSpec(fd=spec))
        watch = self.watches.AddWatch(request).watch.watch_id
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self.keys[fd], self.fds[watch] = (key, watch), fd
        return key

    def modify(self, fileobj, events, data=None):
        old, watch = self._find(fileobj)
        dropped, added = old.events & ~events, events & ~old.events
        items = []
        if dropped:
            items.append(watches.RearmItem(watch_id=watch, disarm=True, **directions(dropped)))
        if added:
            items.append(watches.RearmItem(watch_id=watch, **directions(added)))
        self.watches.Rearm(watches.RearmRequest(loop=self.loop, items=items))
        key = old._replace(events=events, data=data)
        self.keys[key.fd] = (key, watch)
        return key

    def unregister(self, fileobj):
        key, watch = self._find(fileobj)
        del self.keys[key.fd], self.fds[watch]
        self.fired.pop(watch, None)
        ref = common.WatchRef(watch_id=watch)
        self.watches.RemoveWatch(watches.RemoveWatchRequest(loop=self.loop, watch=ref))
        return key

    def select(self, timeout=None):
        end = math.inf if timeout is None else time.monotonic() + max(timeout, 0)
        while True:
            left = min(max(end - time.monotonic(), 0), LONGEST_WAIT)
            rearm = [self._rearming(watch, seq) for watch, seq in self.fired.items()]
            self.fired.clear()
            found, stale = {}, False
            for event, fresh in self._poll(rearm, left):
                self.fired[event.watch_id] = event.seq
                # Perhaps the caller has handled this readiness since it was found: look once more.
                stale |= not fresh
                if fresh:
                    found[event.watch_id] = found.get(event.watch_id, 0) | mask(event.ready)
            ready = []
            for watch, what in found.items():
                key, _ = self.keys[self.fds[watch]]
                if what & key.events:
                    ready.append((key, what & key.events))
            if not stale and (ready or time.monotonic() >= end):
                return ready

    def close(self):
        self.keys.clear()
        self.loops.StopLoop(loops.StopLoopRequest(loop=self.loop))
        self.loops.CloseLoop(loops.CloseLoopRequest(loop=self.loop))

    def get_map(self):
        return {key.fileobj: key for key, _ in self.keys.values()}

    def _find(self, fileobj):
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd not in self.keys:
            raise KeyError(f"{fileobj!r} is not registered")
        return self.keys[fd]

    def _rearming(self, watch, seq):
        key, _ = self.keys[self.fds[watch]]
        return watches.RearmItem(watch_id=watch, seq=seq, **directions(key.events))

    def _poll(self, rearm, timeout):
        """Returns the Ready events of registered descriptors, each with whether this call found it."""
        wait = Duration()
        wait.FromNanoseconds(math.ceil(timeout * 1e9))
        request = events.PollRequest(
            loop=self.loop,
            after=self.cursor,
            filter=events.Filter(kinds=[event_pb2.EVENT_KIND_READY]),
            max_events=65_536,
            timeout=wait,
            rearm=rearm,
            fence=True,
        )
        answer = self.events.Poll(request)
        self.cursor = common.Cursor(epoch=answer.epoch, seq=answer.batch.through)
        told = []
        for event in answer.batch.events:
            if event.watch_id not in self.fds:
                continue  # the descriptor was unregistered
            if event.HasField("closed"):
                raise OSError(errno.EBADF, f"the watch of descriptor {self.fds[event.watch_id]} is gone")
            told.append((event, event.monotonic_ns >= answer.looked_at_ns))
        return told


def directions(mask):
    return {"readable": bool(mask & selectors.EVENT_READ), "writable": bool(mask & selectors.EVENT_WRITE)}


def mask(ready):
    return ready.read_fired * selectors.EVENT_READ | ready.write_fired * selectors.EVENT_WRITE
