"""Runs a program, one after the other, and waits for each: on asyncio. Prints the median, in microseconds."""
import asyncio
import sys
import time
from asyncio.subprocess import DEVNULL


async def main():
    program, count = sys.argv[1], int(sys.argv[2])
    samples = []
    for _ in range(count):
        begun = time.monotonic()
        child = await asyncio.create_subprocess_exec(program, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        if await child.wait() != 0:
            sys.exit("it failed")
        samples.append(time.monotonic() - begun)
    samples.sort()
    print(samples[count // 2] * 1e6)


asyncio.run(main())
