"""A script that prints the traceback of each error that it runs into, as Python prints it."""

import asyncio
import json
import os
import signal
import threading
import traceback

import snakepit_kernel
from snakepit_kernel import Pool, open_session


def fail(item="coffee"):
    return {"tea": 2.5}[item]


def chunks():
    yield 1
    fail()


def nap():
    import time

    snakepit_kernel.context().host_tools.begun()
    time.sleep(60)


async def anap():
    await snakepit_kernel.context().acall_host_tool("begun")
    await asyncio.sleep(60)


def begun():
    """Interrupt the script when the tool goes on."""
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()


def ask():
    return snakepit_kernel.context().host_tools.broken()


def broken():
    fail("cake")


# -- cases: each ends in one line that raises ------------------------------------------------------


def tool(pool):
    pool.tools.fail()


def call(pool):
    pool.call("fail", {"item": "coffee"})


def acall(pool):
    async def main():
        await pool.acall("fail")

    asyncio.run(main())


def astream(pool):
    async def main():
        async for _ in pool.astream("chunks"):
            pass

    asyncio.run(main())


def stream(pool):
    list(pool.tools.chunks())


def submit(pool):
    pool.submit(fail).result()


def mapped(pool):
    list(pool.map(fail, ["coffee"]))


def cell(pool):
    raise pool.run("1 / 0").error


def wrong_arguments(pool):
    pool.tools.fail(itm=1)


def missing_arguments(pool):
    pool.run()


def not_picklable(pool):
    pool.submit(fail, threading.Lock())


def pull(pool):
    pool.run("1", pull=["nope"])


def host_tool(pool):
    pool.tools.ask()


def variable(pool):
    pool.session("s").variables["nope"]


def variables(pool):
    open_session("s").variables.set_many({"nope": 1})


def program(pool):
    pool.session("s").programs["nope"]


def shell(pool):
    pool.session("s").shell.run("false", check=True)


def process(pool):
    pool.session("s").processes.get("nope")


def options(pool):
    Pool(workers=0)


def source_of_nothing(pool):
    space = {}
    exec("def broken():\n    1 / 0", space)
    pool.submit(space["broken"]).result()


def stop_of_call(pool):
    pool.tools.nap()


def stop_of_acall(pool):
    asyncio.run(pool.acall("anap"))


def stop_of_cell(pool):
    pool.run("import snakepit_kernel as s, time\ns.context().host_tools.begun()\ntime.sleep(60)")


def stop_of_result(pool):
    begun()
    pool.submit(nap_only).result()


def nap_only():
    import time

    time.sleep(2)


def dies(pool):
    pool.submit(os._exit, 3).result()


def raised_twice(pool):
    future = pool.submit(fail)
    for number in range(2):
        try:
            future.result()
        except KeyError:
            if number:
                raise


CASES = [
    *(tool, call, acall, astream, stream, submit, mapped, cell, wrong_arguments),
    *(missing_arguments, not_picklable, pull, host_tool, variable, variables, program, shell),
    *(process, options, source_of_nothing, stop_of_call, stop_of_acall, stop_of_cell),
    *(stop_of_result, dies, raised_twice),
]


def outcome(case, pool):
    try:
        case(pool)
    except (Exception, KeyboardInterrupt) as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        return {
            "kind": type(error).__name__,
            "frames": [[os.path.basename(frame.filename), frame.name] for frame in frames],
            "text": "".join(traceback.format_exception(error)),
        }
    raise AssertionError(case)


def main():
    with Pool(1) as pool:
        for function in (fail, chunks, nap, anap, ask):
            pool.tool(function)
        for function in (broken, begun):
            pool.host_tool(function)
        found = {case.__name__: outcome(case, pool) for case in CASES}
        print(json.dumps(found), flush=True)
        tool(pool)


if __name__ == "__main__":
    main()
