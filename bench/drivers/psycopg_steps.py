"""psycopg 3."""

import threading
import time

import psycopg
from psycopg import errors

from steps import *


def connect(**words):
    given = dict(host=HOST, port=PORT, user=USER, dbname=DATABASE, password=PASSWORD, autocommit=True)
    return psycopg.connect(**{**given, **words})


def connects():
    with connect() as db:
        assert db.info.dbname == DATABASE


def wrong_password():
    try:
        connect(password="wrong").close()
    except psycopg.OperationalError as error:
        # libpq keeps no SQLSTATE of a log-in that failed.
        assert error.sqlstate in (None, "28P01") and "password authentication failed" in str(error), error
    else:
        raise AssertionError("it was let in")


def simple():
    with connect() as db, psycopg.ClientCursor(db) as cursor:
        assert cursor.execute("SELECT 1; SELECT 2").fetchone() == (1,)


def parameters():
    with connect() as db:
        assert db.execute("SELECT %s::int + 1, %s::text", (41, "é")).fetchone() == (42, "é")
        assert db.execute("SELECT %b::int", (7,), binary=True).fetchone() == (7,)


def prepared():
    with connect(prepare_threshold=0) as db:
        for n in range(10):
            assert db.execute("SELECT %s::int * 2", (n,)).fetchone() == (n * 2,)


def many():
    clients = [connect(prepare_threshold=0) for _ in range(3)]
    for n in range(STATEMENTS):
        for at, db in enumerate(clients):
            assert db.execute(f"SELECT %s::int + {n}", (at,)).fetchone() == (at + n,)
    for db in clients:
        # The first was evicted long ago.
        assert db.execute("SELECT %s::int + 0", (5,)).fetchone() == (5,)
        db.close()


def pipeline():
    with connect(prepare_threshold=0) as db:
        with db.pipeline():
            cursors = [db.execute("SELECT %s::int", (n,)) for n in range(50)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(50))
        # More than the driver keeps: it evicts inside of a pipeline.
        with db.pipeline():
            cursors = [db.execute(f"SELECT %s::int + {n}", (n,)) for n in range(150)]
        assert [cursor.fetchone()[0] for cursor in cursors] == [2 * n for n in range(150)]
        try:
            with db.pipeline():
                db.execute("SELECT 1/%s", (0,))
                db.execute("SELECT 1")
        except errors.DivisionByZero:
            pass
        else:
            raise AssertionError("no error")
        assert db.execute("SELECT 1").fetchone() == (1,)


def transaction():
    if MODE == "statement":
        try:
            with connect() as db, db.transaction():
                db.execute("SELECT 1")
        except psycopg.Error as error:
            # After the answer to BEGIN comes the refusal: libpq gives it both, and it says only that.
            assert "received 2 results from command 'BEGIN'" in str(error), error
            return
        raise AssertionError("a transaction block was let in")
    with connect(autocommit=False) as db:
        insert = "INSERT INTO driver_rows VALUES (%s, %s)"
        db.execute(insert, (WHO, 1))
        db.commit()
        db.execute(insert, (WHO, 2))
        db.rollback()
        with db.transaction():
            db.execute(insert, (WHO, 3))
            try:
                with db.transaction():
                    db.execute(insert, (WHO, 4))
                    db.execute("SELECT 1/0")
            except errors.DivisionByZero:
                pass
        rows = db.execute("SELECT n FROM driver_rows WHERE who = %s ORDER BY n", (WHO,)).fetchall()
        assert rows == [(1,), (3,)], rows


def error():
    with connect() as db:
        for _ in range(2):
            try:
                db.execute("SELECT %s::int / 0", (1,))
                raise AssertionError("no error")
            except errors.DivisionByZero as error:
                assert error.sqlstate == "22012"
            assert db.execute("SELECT %s::int", (1,)).fetchone() == (1,)


def copy():
    with connect() as db, db.cursor() as cursor:
        with cursor.copy("COPY driver_rows FROM STDIN") as copy:
            for n in range(1000, 2000):
                copy.write_row((WHO, n))
        out = "COPY (SELECT n FROM driver_rows WHERE who = %s AND n >= 1000) TO STDOUT"
        with cursor.copy(out, (WHO,)) as copy:
            assert sum(1 for _ in copy.rows()) == 1000
        try:
            with cursor.copy("COPY driver_rows FROM STDIN") as copy:
                copy.write("no number\tx\n")
            raise AssertionError("no error")
        except errors.InvalidTextRepresentation:
            pass
        assert cursor.execute("SELECT 1").fetchone() == (1,)


def large():
    with connect() as db:
        text = "x" * MEGABYTE
        assert db.execute("SELECT %s::text", (text,)).fetchone() == (text,)
        assert db.execute("SELECT repeat('y', %s)", (MEGABYTE,)).fetchone() == ("y" * MEGABYTE,)


def cancel():
    with connect() as db:
        def later():
            time.sleep(0.5)
            db.cancel_safe()

        canceller = threading.Thread(target=later)
        canceller.start()
        try:
            db.execute("SELECT pg_sleep(20)")
            raise AssertionError("it was not cancelled")
        except errors.QueryCanceled:
            pass
        canceller.join()
        assert db.execute("SELECT 1").fetchone() == (1,)


def reconnect():
    for n in range(10):
        with connect() as db:
            assert db.execute("SELECT %s::int", (n,)).fetchone() == (n,)


version(f"{psycopg.__version__}, libpq {psycopg.pq.version_pretty(psycopg.pq.version())}")
step("connect", connects)
step("wrong password", wrong_password)
step("simple query", simple)
step("parameters", parameters)
step("prepared", prepared)
step("many prepared", many)
step("pipeline", pipeline)
step("transaction", transaction)
step("error", error)
step("copy", copy)
step("large", large)
step("cancel", cancel)
step("reconnect", reconnect)
