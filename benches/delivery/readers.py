"""Writes to all pipes, waits, and reads all that are ready, with add_reader of uvloop."""
import asyncio
import os
import sys
import time

import uvloop


def main():
    count, events = int(sys.argv[1]), int(sys.argv[2])
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    pipes = [os.pipe() for _ in range(count)]
    outstanding = 0
    left = events // count

    def write():
        nonlocal outstanding, left
        if left == 0:
            loop.stop()
            return
        left -= 1
        outstanding = count
        for _, writer in pipes:
            os.write(writer, b"x")

    def read(reader):
        nonlocal outstanding
        outstanding -= len(os.read(reader, 4096))
        if outstanding == 0:
            write()

    for reader, _ in pipes:
        os.set_blocking(reader, False)
        loop.add_reader(reader, read, reader)
    begun = time.monotonic()
    loop.call_soon(write)
    loop.run_forever()
    print(events / (time.monotonic() - begun) / 1000)


main()
