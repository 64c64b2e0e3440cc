"""A plain grpcio client: run and resume, watches on its own file descriptors, a selector."""
import array
import os
import selectors
import socket
import subprocess
import sys
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

import client
from evloopd.v1 import admin_service_pb2 as admin
from evloopd.v1 import admin_service_pb2_grpc as admin_grpc
from evloopd.v1 import common_pb2 as common
from evloopd.v1 import event_pb2
from evloopd.v1 import event_service_pb2 as events
from evloopd.v1 import event_service_pb2_grpc as events_grpc
from evloopd.v1 import loop_service_pb2 as loops
from evloopd.v1 import loop_service_pb2_grpc as loops_grpc
from evloopd.v1 import policy_service_pb2 as policies
from evloopd.v1 import policy_service_pb2_grpc as policies_grpc
from evloopd.v1 import process_service_pb2 as processes
from evloopd.v1 import process_service_pb2_grpc as processes_grpc
from evloopd.v1 import watch_service_pb2 as watches
from evloopd.v1 import watch_service_pb2_grpc as watches_grpc

PATIENCE = 30
STDOUT = event_pb2.STREAM_STDOUT


@pytest.fixture
def channel(daemon):
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{daemon.socket}", options=options) as channel:
        yield channel


class RemoteSelector:
    """A selector that waits in evloopd: register, select, unregister."""

    def __init__(self, channel):
        self.watches = watches_grpc.WatchServiceStub(channel)
        self.events = events_grpc.EventServiceStub(channel)
        info = admin_grpc.AdminServiceStub(channel).GetServerInfo(admin.GetServerInfoRequest())
        self.handover = info.handover_socket
        self.wanted = {}
        self.fired = {}
        self.cursor = None

    def register(self, fileobj, mask):
        """Watches a file descriptor of this process and returns the id of the watch."""
        spec = watches.FdSpec(
            slot=hand_over(self.handover, fileobj),
            readable=bool(mask & selectors.EVENT_READ),
            writable=bool(mask & selectors.EVENT_WRITE),
        )
        added = self.watches.AddWatch(watches.AddWatchRequest(spec=watches.WatchSpec(fd=spec)), timeout=PATIENCE)
        self.wanted[added.watch.watch_id] = mask
        self.cursor = self.cursor or added.added
        return added.watch.watch_id

    def select(self, timeout=PATIENCE):
        """Returns {watch: mask} of ready descriptors. Level-triggered: watches that fired before are armed again."""
        rearm = [watches.RearmItem(watch_id=watch, seq=seq) for watch, seq in self.fired.items()]
        ready = self.poll(timeout, rearm)
        self.fired = {event.watch_id: event.seq for event in ready}
        return {event.watch_id: self.wanted[event.watch_id] & mask(event.ready) for event in ready}

    def unregister(self, watch):
        """Removes the watch and returns the cursor after which it has no events."""
        self.fired.pop(watch, None)
        ref = common.WatchRef(watch_id=watch)
        return self.watches.RemoveWatch(watches.RemoveWatchRequest(watch=ref), timeout=PATIENCE).removed

    def poll(self, timeout=PATIENCE, rearm=()):
        """Returns the Ready events after those of earlier calls."""
        only_ready = events.Filter(kinds=[event_pb2.EVENT_KIND_READY])
        wait = Duration(seconds=timeout)
        while True:
            request = events.PollRequest(after=self.cursor, filter=only_ready, timeout=wait, rearm=rearm)
            response = self.events.Poll(request, timeout=2 * PATIENCE)
            assert response.batch.after == self.cursor.seq
            self.cursor = common.Cursor(epoch=response.epoch, seq=response.batch.through)
            ready = [event for event in response.batch.events if event.HasField("ready")]
            # A Closed passes every filter, and ends the wait as well.
            if ready or not response.batch.events:
                return ready
            rearm = ()

    def rearm(self, watch, seq):
        """Arms the watch again after the Ready with that seq; returns whether that was done."""
        request = watches.RearmRequest(items=[watches.RearmItem(watch_id=watch, seq=seq)])
        [armed] = self.watches.Rearm(request, timeout=PATIENCE).armed
        return armed

    def history(self, watch, after):
        """Returns all events of the watch so far."""
        request = events.PollRequest(after=after, filter=events.Filter(watch_ids=[watch]))
        return list(self.events.Poll(request, timeout=PATIENCE).batch.events)


def mask(ready):
    return ready.read_fired * selectors.EVENT_READ | ready.write_fired * selectors.EVENT_WRITE


def hand_over(path, fileobj):
    """Gives a duplicate of a file descriptor to the daemon and returns its slot."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as side:
        side.settimeout(PATIENCE)
        side.connect(path)
        rights = array.array("i", [fileobj.fileno()])
        side.sendmsg([b"evloopd1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        reply = side.recv(4096)
    assert reply[0] == 0, reply
    assert len(reply) == 1 + 16
    return reply[1:]


def run_client(daemon, name, *argv):
    command = [sys.executable, client.__file__, daemon.socket, name, *argv]
    return subprocess.run(command, check=False, env=daemon.env, capture_output=True, timeout=PATIENCE)


def test_a_second_client_joins_and_gets_the_same_output_and_exit_code(daemon, tmp_path):
    started = tmp_path / "started"
    script = f"echo once >> {started}; echo out; echo err >&2; exit 3"
    first, second = (run_client(daemon, "twice", "/bin/sh", "-c", script) for _ in range(2))
    assert (first.stdout, first.stderr, first.returncode) == (b"out\n", b"err\n", 3)
    assert (second.stdout, second.stderr, second.returncode) == (b"out\n", b"err\n", 3)
    assert started.read_text() == "once\n"


def test_arguments_that_are_not_utf_8_are_given_as_bytes(channel):
    command = watches.ExecCommand(argv_bytes=[b"printf", b"%s", b"\xff\xfe"])
    request = processes.RunRequest(name="bytes", spec=watches.ProcessSpec(exec=command))
    messages = processes_grpc.ProcessServiceStub(channel).Run(request, timeout=PATIENCE)
    assert b"".join(event.data.data for message in messages for event in message.batch.events) == b"\xff\xfe"


def test_a_stream_that_was_broken_off_resumes_after_the_cursor(daemon, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    argv = ["/bin/sh", "-c", f"seq 1 3000; read go < {gate}; seq 3001 10000; exit 7"]
    output, code, after = b"", None, None

    first = client.run(daemon.socket, "resumed", argv)
    for after, event in first:
        output += event.data.data
        if output:
            break
    first.close()

    both_ends = os.open(gate, os.O_RDWR)  # with O_RDWR, the open does not wait for a reader
    os.write(both_ends, b"go\n")
    last = after.seq
    for cursor, event in client.run(daemon.socket, "resumed", argv, after):
        assert cursor.epoch == after.epoch
        assert event.seq > last
        last = event.seq
        if event.HasField("data"):
            assert (event.data.stream, event.data.offset) == (STDOUT, len(output))
            output += event.data.data
        elif event.HasField("exited"):
            code = event.exited.code
    os.close(both_ends)
    assert output == b"".join(b"%d\n" % n for n in range(1, 10_001))
    assert code == 7


def test_a_run_that_is_read_in_bursts_loses_nothing(daemon, channel):
    size = 100_000_000  # more than a journal holds
    argv = ["/bin/sh", "-c", f"head -c {size} /dev/zero; exit 7"]
    spec = watches.ProcessSpec(exec=watches.ExecCommand(argv=argv))
    stream = processes_grpc.ProcessServiceStub(channel).Run(processes.RunRequest(name="bursts", spec=spec))
    get = loops.GetLoopRequest(loop=common.LoopRef(loop_id=next(stream).header.loop_id))
    # A connection of its own: while a stream is not read, its connection receives nothing more.
    own = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    received, code = 0, None

    def receive(batch):
        nonlocal received, code
        assert not batch.gaps
        for event in batch.events:
            if event.HasField("data"):
                assert event.data.offset == received
                received += len(event.data.data)
            elif event.HasField("exited"):
                code = event.exited.code

    with grpc.insecure_channel(f"unix:{daemon.socket}", options=own) as other:
        watcher = loops_grpc.LoopServiceStub(other)
        for _ in range(3):
            paused, deadline = [], time.monotonic() + PATIENCE
            while not paused:
                assert time.monotonic() < deadline, "the process does not wait for its reader"
                paused = watcher.GetLoop(get, timeout=PATIENCE).loop.journal.paused_sources
            assert [source.name for source in paused] == ["bursts"]
            assert paused[0].pause.reason == common.SOURCE_PAUSE_REASON_READERS
            for _ in range(20):
                receive(next(stream).batch)
    for message in stream:
        receive(message.batch)
    assert (received, code) == (size, 7)


def test_a_handed_over_socket_is_ready_once_until_it_is_armed_again(channel):
    selector = RemoteSelector(channel)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watch = selector.register(theirs, selectors.EVENT_READ)
        added = selector.cursor
        ours.send(b"1")
        [first] = selector.poll()
        assert (first.watch_id, first.ready.readable) == (watch, True)

        ours.send(b"2")  # no event: the watch is not armed
        assert selector.rearm(watch, first.seq)
        [second] = selector.poll()  # at once: the byte is still unread
        assert not selector.rearm(watch, first.seq)  # a later Ready exists

        assert theirs.recv(16) == b"12"
        assert selector.rearm(watch, second.seq)
        ours.send(b"3")
        [third] = selector.poll()
        assert third.ready.readable

        removed = selector.unregister(watch)
        history = selector.history(watch, added)
        assert [event.WhichOneof("kind") for event in history] == ["ready"] * 3 + ["closed", "removed"]
        assert history[-1].seq == removed.seq
        assert theirs.recv(16) == b"3"  # this process still has its own descriptor


def test_a_selector_registers_selects_and_unregisters(channel):
    selector = RemoteSelector(channel)
    a_here, a_there = socket.socketpair()
    b_here, b_there = socket.socketpair()
    with a_here, a_there, b_here, b_there:
        a = selector.register(a_here, selectors.EVENT_READ)
        b = selector.register(b_here, selectors.EVENT_READ)
        a_there.send(b"a")
        assert selector.select() == {a: selectors.EVENT_READ}
        assert selector.select() == {a: selectors.EVENT_READ}
        assert a_here.recv(16) == b"a"
        b_there.send(b"b")
        assert selector.select() == {b: selectors.EVENT_READ}

        selector.unregister(b)
        a_there.send(b"a")
        assert selector.select() == {a: selectors.EVENT_READ}
        selector.unregister(a)

        writer = selector.register(a_there, selectors.EVENT_WRITE)
        assert selector.select() == {writer: selectors.EVENT_WRITE}
        selector.unregister(writer)
        assert selector.select(timeout=0) == {}


def test_without_the_authority_the_error_is_the_one_the_readme_names(daemon):
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        with pytest.raises(grpc.RpcError) as error:
            admin_grpc.AdminServiceStub(channel).GetServerInfo(admin.GetServerInfoRequest(), timeout=PATIENCE)
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert "RST_STREAM with error code 1" in error.value.details()


def test_a_deadline_works_on_a_stopped_loop_and_other_calls_are_answered_at_once(channel):
    still = common.LoopRef(name="still")
    loop_service = loops_grpc.LoopServiceStub(channel)
    watch_service = watches_grpc.WatchServiceStub(channel)
    policies_grpc.PolicyServiceStub(channel).NewEventLoop(policies.NewEventLoopRequest(name="still"))
    loop_service.StopLoop(loops.StopLoopRequest(loop=still), timeout=PATIENCE)
    spec = watches.ProcessSpec(exec=watches.ExecCommand(argv=["sleep", "1000"]))
    request = processes.RunRequest(loop=still, name="job", spec=spec)
    with pytest.raises(grpc.RpcError) as ended:
        list(processes_grpc.ProcessServiceStub(channel).Run(request, timeout=0.5))
    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    job = common.WatchRef(name="job")
    found = watch_service.GetWatch(watches.GetWatchRequest(loop=still, watch=job), timeout=PATIENCE)
    assert found.watch.state == watches.WATCH_STATE_OPEN
    watch_service.RemoveWatch(watches.RemoveWatchRequest(loop=still, watch=job), timeout=PATIENCE)
    loop_service.CloseLoop(loops.CloseLoopRequest(loop=still), timeout=PATIENCE)


def test_plain_trailers_have_the_reason(channel):
    def refusal(call):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        trailers = dict(refused.value.trailing_metadata())
        return {key.removeprefix("evloopd-"): value for key, value in trailers.items() if key.startswith("evloopd-")}

    watch = watches_grpc.WatchServiceStub(channel)
    loop = loops_grpc.LoopServiceStub(channel)

    def add(spec):
        return lambda: watch.AddWatch(watches.AddWatchRequest(spec=spec), timeout=PATIENCE)

    nowhere = common.LoopRef(name="nowhere\n\x1b[2J\u202e")
    assert refusal(lambda: loop.GetLoop(loops.GetLoopRequest(loop=nowhere))) == {"reason": "LOOP_NOT_FOUND"}
    missing = watches.WatchSpec(read_pipe=watches.ReadPipeSpec(fifo_path="/no/such"))
    assert refusal(add(missing)) == {"reason": "SYSTEM", "errno": "ENOENT", "step": "open"}
    wrong = watches.WatchSpec(timer=watches.TimerSpec())
    assert refusal(add(wrong)) == {"reason": "INVALID_FIELD", "field": "spec.timer"}
