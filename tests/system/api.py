"""A loop of the daemon as the tests use it: add watches, wait for events, write."""
import itertools
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from evloopd.v1 import common_pb2 as common
from evloopd.v1 import event_pb2
from evloopd.v1 import event_service_pb2 as events
from evloopd.v1 import event_service_pb2_grpc as events_grpc
from evloopd.v1 import loop_service_pb2 as loops
from evloopd.v1 import loop_service_pb2_grpc as loops_grpc
from evloopd.v1 import policy_service_pb2 as policies
from evloopd.v1 import policy_service_pb2_grpc as policies_grpc
from evloopd.v1 import transport_service_pb2 as transports
from evloopd.v1 import transport_service_pb2_grpc as transports_grpc
from evloopd.v1 import watch_service_pb2 as watches
from evloopd.v1 import watch_service_pb2_grpc as watches_grpc

# Seconds after which whatever a test waits for has failed.
PATIENCE = 60
NUMBERS = itertools.count()
BACKENDS = {"epoll": "default", "poll": "default", "select": "default", "io_uring": "proactor"}


def seconds(value):
    duration = Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


def connect(daemon):
    return grpc.insecure_channel(f"unix:{daemon.socket}", options=[("grpc.default_authority", "localhost")])


class Loop:
    """A loop on this backend, which is closed with its watches at the end."""

    def __init__(self, channel, backend="epoll"):
        self.watches = watches_grpc.WatchServiceStub(channel)
        self.transports = transports_grpc.TransportServiceStub(channel)
        self.loops = loops_grpc.LoopServiceStub(channel)
        self.reader = events_grpc.EventServiceStub(channel)
        new = policies.NewEventLoopRequest(
            name=f"{backend.replace('_', '-')}-{next(NUMBERS)}", policy=BACKENDS[backend], backend=backend
        )
        try:
            made = policies_grpc.PolicyServiceStub(channel).NewEventLoop(new).loop
        except grpc.RpcError as error:
            if dict(error.trailing_metadata()).get("evloopd-reason") == "BACKEND_UNAVAILABLE":
                pytest.skip(f"SKIPPED on {backend}: {error.details()}")
            raise
        self.ref = common.LoopRef(loop_id=made.loop_id)
        self.cursor = common.Cursor(epoch=made.journal.epoch, seq=made.journal.newest_seq)
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loops.CloseLoop(loops.CloseLoopRequest(loop=self.ref, stop=True))

    def add(self, **spec):
        """Adds a watch and returns its id."""
        request = watches.AddWatchRequest(loop=self.ref, spec=watches.WatchSpec(**spec))
        return self.watches.AddWatch(request, timeout=PATIENCE).watch.watch_id

    def listen(self, **options):
        """Listens on a port of 127.0.0.1 and returns the watch and the port."""
        tcp = watches.TcpListen(hosts=["127.0.0.1"])
        watch = self.add(listener=watches.ListenerSpec(tcp=tcp, **options))
        return watch, self.get(watch).listener.addresses[0].inet.port

    def connect(self, port, host="127.0.0.1", **options):
        tcp = watches.TcpTarget(host=host, port=port)
        return self.add(connection=watches.ConnectionSpec(tcp=tcp, **options))

    def get(self, watch):
        request = watches.GetWatchRequest(loop=self.ref, watch=common.WatchRef(watch_id=watch))
        return self.watches.GetWatch(request, timeout=PATIENCE).watch

    def remove(self, watch):
        request = watches.RemoveWatchRequest(loop=self.ref, watch=common.WatchRef(watch_id=watch))
        return self.watches.RemoveWatch(request, timeout=PATIENCE)

    def call(self, name, watch, **fields):
        """Makes a call of TransportService, such as Write, on a watch."""
        request = getattr(transports, f"{name}Request")(
            loop=self.ref, watch=common.WatchRef(watch_id=watch), **fields
        )
        return getattr(self.transports, name)(request, timeout=PATIENCE)

    def write(self, watch, data, eof=False):
        """Writes all bytes, waiting for room, and ends the stream if asked."""
        begin = taken = self.call("Write", watch, data=b"").taken
        while taken < begin + len(data):
            piece = data[taken - begin : taken - begin + (1 << 20)]
            seen = len(self.of("write_resumed", watch))
            answer = self.call("Write", watch, data=piece, offset=taken)
            if answer.taken < taken + len(piece):
                self.until(lambda: len(self.of("write_resumed", watch)) > seen)
            taken = answer.taken
        if eof:
            self.call("WriteEof", watch)

    def of(self, kind, watch=None):
        """The events of a kind that were read so far."""
        found = [event for event in self.events if event.HasField(kind)]
        return [event for event in found if watch in (None, event.watch_id)]

    def poll(self, timeout):
        request = events.PollRequest(loop=self.ref, after=self.cursor, timeout=seconds(timeout))
        answer = self.reader.Poll(request, timeout=timeout + PATIENCE)
        assert not answer.batch.gaps
        self.cursor = common.Cursor(epoch=answer.epoch, seq=answer.batch.through)
        self.events.extend(answer.batch.events)

    def until(self, reached):
        """Reads events until `reached()` is true, and returns what it returned."""
        end = time.monotonic() + PATIENCE
        while not (result := reached()):
            left = end - time.monotonic()
            assert left > 0, f"it does not come; there are: {self.events}"
            self.poll(left)
        return result

    def wait(self, kind, watch=None, number=1):
        """Waits for the event of that number of its kind and returns its content."""
        self.until(lambda: len(self.of(kind, watch)) >= number)
        return getattr(self.of(kind, watch)[number - 1], kind)

    def accepted(self, listener, number=1):
        """Waits for the connection of that number that a listener accepts; returns its watch."""
        return self.wait("accepted", listener, number).watch_id

    def data(self, watch):
        return b"".join(event.data.data for event in self.of("data", watch))

    def received(self, watch, enough):
        """Waits until the data of a watch contain these bytes, or are so many; returns them."""

        def reached():
            data = self.data(watch)
            return len(data) >= enough if isinstance(enough, int) else enough in data

        self.until(lambda: reached() or self.of("closed", watch))
        assert reached(), f"{self.data(watch)[:1000]} and {self.of('closed', watch)}"
        return self.data(watch)

    def closed(self, watch):
        return self.wait("closed", watch)


def reason(closed):
    """Why a watch closed, as a word."""
    return event_pb2.CloseReason.Name(closed.reason).removeprefix("CLOSE_REASON_")
