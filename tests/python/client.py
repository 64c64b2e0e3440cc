"""Run a command once, by name: whoever runs this again gets the same output and exit code."""
import os
import sys

import grpc
from evloopd.v1 import common_pb2, process_service_pb2 as api, process_service_pb2_grpc, watch_service_pb2


def run(socket, name, argv, after=None):
    """Start or join the process; yield (cursor, event). To resume, pass the last cursor seen."""
    options = [("grpc.default_authority", "localhost")]  # without it: RST_STREAM with error code 1
    spec = watch_service_pb2.ProcessSpec(exec=watch_service_pb2.ExecCommand(argv=argv), cwd=os.getcwd())
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        stub = process_service_pb2_grpc.ProcessServiceStub(channel)
        epoch = ""
        for message in stub.Run(api.RunRequest(name=name, spec=spec, after=after)):
            epoch = message.header.epoch or epoch
            if message.batch.gaps:
                raise EOFError(f"the daemon holds these no longer: {message.batch.gaps}")
            for event in message.batch.events:
                yield common_pb2.Cursor(epoch=epoch, seq=event.seq), event


def main(socket, name, *argv):
    status = "the stream ended before the process did"
    files = {2: sys.stdout.buffer, 3: sys.stderr.buffer}  # STREAM_STDOUT, STREAM_STDERR
    for _, event in run(socket, name, argv):
        if event.HasField("data"):
            files[event.data.stream].write(event.data.data)
            files[event.data.stream].flush()
        elif event.HasField("exited"):
            end = event.exited
            status = end.code if end.HasField("code") else end.unknown or 128 + end.signal
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
