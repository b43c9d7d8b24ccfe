"""asyncpg."""

import asyncio
import io

import asyncpg

from steps import *


def connect(**words):
    given = dict(host=HOST, port=PORT, user=USER, database=DATABASE, password=PASSWORD)
    return asyncpg.connect(**{**given, **words})


async def connects():
    db = await connect()
    assert db.get_server_version().major >= 15
    await db.close()


async def wrong_password():
    try:
        await connect(password="wrong")
    except asyncpg.InvalidPasswordError as error:
        assert error.sqlstate == "28P01"
    else:
        raise AssertionError("it was let in")


async def simple():
    db = await connect()
    assert await db.execute("SELECT 1; SELECT 2") == "SELECT 1"
    await db.close()


async def parameters():
    db = await connect(statement_cache_size=0)
    assert tuple(await db.fetchrow("SELECT $1::int + 1, $2::text", 41, "é")) == (42, "é")
    # Types it does not know are asked for.
    assert await db.fetchval("SELECT $1::int4range", asyncpg.Range(1, 5)) == asyncpg.Range(1, 5)
    await db.close()


async def prepared():
    db = await connect()
    for n in range(10):
        assert await db.fetchval("SELECT $1::int * 2", n) == n * 2
    own = await db.prepare("SELECT $1::int * 3")
    for n in range(10):
        assert await own.fetchval(n) == n * 3
    await db.close()


async def many():
    async def client(at):
        # Its cache holds 100: it closes what gives way.
        db = await connect()
        for n in range(STATEMENTS):
            assert await db.fetchval(f"SELECT $1::int + {n}", at) == at + n
        assert await db.fetchval("SELECT $1::int + 0", 5) == 5
        held = [await db.prepare(f"SELECT $1::int - {n}") for n in range(STATEMENTS)]
        for n, one in enumerate(held):
            assert await one.fetchval(at) == at - n
        await db.close()

    await asyncio.gather(*(client(at) for at in range(3)))


async def pipeline():
    db = await connect()
    await db.executemany("INSERT INTO driver_rows VALUES ($1, $2)", [(WHO, 5000 + n) for n in range(500)])
    count = "SELECT count(*) FROM driver_rows WHERE who = $1 AND n BETWEEN 5000 AND 5999"
    assert await db.fetchval(count, WHO) == 500
    try:
        await db.executemany("SELECT 1 / $1::int", [(1,), (0,), (1,)])
        raise AssertionError("no error")
    except asyncpg.DivisionByZeroError:
        pass
    assert await db.fetchval("SELECT 1") == 1
    await db.close()


async def transaction():
    db = await connect()
    if MODE == "statement":
        try:
            async with db.transaction():
                await db.execute("SELECT 1")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            return must_be_refused(error)
        raise AssertionError("a transaction block was let in")
    insert = "INSERT INTO driver_rows VALUES ($1, $2)"
    async with db.transaction():
        await db.execute(insert, WHO, 1)
    undone = db.transaction()
    await undone.start()
    await db.execute(insert, WHO, 2)
    await undone.rollback()
    async with db.transaction():
        await db.execute(insert, WHO, 3)
        try:
            async with db.transaction():
                await db.execute(insert, WHO, 4)
                await db.execute("SELECT 1/0")
        except asyncpg.DivisionByZeroError:
            pass
        # A cursor needs a transaction.
        assert len([row async for row in db.cursor("SELECT generate_series(1, 200)", prefetch=50)]) == 200
    rows = await db.fetch("SELECT n FROM driver_rows WHERE who = $1 AND n < 10 ORDER BY n", WHO)
    assert [row[0] for row in rows] == [1, 3], rows
    await db.close()


async def error():
    db = await connect()
    for _ in range(2):
        try:
            await db.fetchval("SELECT $1::int / 0", 1)
            raise AssertionError("no error")
        except asyncpg.DivisionByZeroError as error:
            assert error.sqlstate == "22012"
        assert await db.fetchval("SELECT $1::int", 1) == 1
    await db.close()


async def copy():
    db = await connect()
    rows = [(WHO, n) for n in range(1000, 2000)]
    assert await db.copy_records_to_table("driver_rows", records=rows) == "COPY 1000"
    out = io.BytesIO()
    await db.copy_from_query(f"SELECT n FROM driver_rows WHERE who = '{WHO}' AND n BETWEEN 1000 AND 1999", output=out)
    assert len(out.getvalue().splitlines()) == 1000
    try:
        await db.copy_to_table("driver_rows", source=io.BytesIO(b"no number\tx\n"))
        raise AssertionError("no error")
    except asyncpg.InvalidTextRepresentationError:
        pass
    assert await db.fetchval("SELECT 1") == 1
    await db.close()


async def large():
    db = await connect()
    text = "x" * MEGABYTE
    assert await db.fetchval("SELECT $1::text", text) == text
    assert await db.fetchval("SELECT repeat('y', $1)", MEGABYTE) == "y" * MEGABYTE
    await db.close()


async def cancel():
    db = await connect()
    try:
        await db.execute("SELECT pg_sleep(20)", timeout=0.5)
        raise AssertionError("it was not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await db.fetchval("SELECT 1") == 1
    task = asyncio.ensure_future(db.fetchval("SELECT pg_sleep($1)", 20))
    await asyncio.wait([task], timeout=0.5)
    task.cancel()
    try:
        await task
        raise AssertionError("it was not cancelled")
    except asyncio.CancelledError:
        pass
    assert await db.fetchval("SELECT 1") == 1
    await db.close()


async def reconnect():
    async with asyncpg.create_pool(
        host=HOST, port=PORT, user=USER, database=DATABASE, password=PASSWORD, min_size=1, max_size=3
    ) as pool:
        # What a connection is given back with: a reset of everything.
        for n in range(10):
            async with pool.acquire() as db:
                assert await db.fetchval("SELECT $1::int", n) == n
    db = await connect()
    assert await db.fetchval("SELECT 1") == 1
    await db.close()


def run(name, what):
    step(name, lambda: asyncio.run(what()))


version(asyncpg.__version__)
run("connect", connects)
run("wrong password", wrong_password)
run("simple query", simple)
run("parameters", parameters)
run("prepared", prepared)
run("many prepared", many)
run("pipeline", pipeline)
run("transaction", transaction)
run("error", error)
run("copy", copy)
run("large", large)
run("cancel", cancel)
run("reconnect", reconnect)
