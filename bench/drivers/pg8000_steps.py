"""pg8000."""

import importlib.metadata
import io
import os
import ssl

from pg8000 import dbapi, native

from steps import *


# As libpq with sslmode=require: whoever answers, it is encrypted.
TLS = ssl.create_default_context() if os.environ["PGSSLMODE"] == "require" else None
if TLS:
    TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE


def connect(**words):
    given = dict(host=HOST, port=PORT, user=USER, database=DATABASE, password=PASSWORD, ssl_context=TLS)
    return native.Connection(**{**given, **words})


def code(error):
    return error.args[0].get("C") if isinstance(error.args[0], dict) else None


def connects():
    connect().close()


def wrong_password():
    try:
        connect(password="wrong")
    except native.DatabaseError as error:
        assert code(error) == "28P01", error
    else:
        raise AssertionError("it was let in")


def simple():
    db = connect()
    assert db.run("SELECT 1") == [[1]]
    db.close()


def parameters():
    db = connect()
    assert db.run("SELECT CAST(:n AS int) + 1, CAST(:t AS text)", n=41, t="é") == [[42, "é"]]
    db.close()


def prepared():
    db = connect()
    own = db.prepare("SELECT CAST(:n AS int) * 2")
    for n in range(10):
        assert own.run(n=n) == [[n * 2]]
    own.close()
    db.close()


def many():
    clients = [connect() for _ in range(3)]
    held = []
    for n in range(STATEMENTS):
        for at, db in enumerate(clients):
            held.append((at, n, db.prepare(f"SELECT CAST(:n AS int) + {n}")))
    for at, n, one in held:
        assert one.run(n=at) == [[at + n]]
        one.close()
    for db in clients:
        db.close()


def transaction():
    if MODE == "statement":
        db = connect()
        try:
            db.run("BEGIN")
            db.run("SELECT 1")
        except native.InterfaceError as error:
            # It reads on after the refusal, finds that the connection has ended, and says only that.
            assert "network error" in str(error), error
            return
        raise AssertionError("a transaction block was let in")
    db = dbapi.connect(host=HOST, port=PORT, user=USER, database=DATABASE, password=PASSWORD, ssl_context=TLS)
    cursor = db.cursor()
    insert = "INSERT INTO driver_rows VALUES (%s, %s)"
    cursor.execute(insert, (WHO, 1))
    db.commit()
    cursor.execute(insert, (WHO, 2))
    db.rollback()
    cursor.execute(insert, (WHO, 3))
    cursor.execute("SAVEPOINT a")
    cursor.execute(insert, (WHO, 4))
    try:
        cursor.execute("SELECT 1/0")
        raise AssertionError("no error")
    except dbapi.DatabaseError as error:
        assert code(error) == "22012", error
    cursor.execute("ROLLBACK TO SAVEPOINT a")
    db.commit()
    cursor.execute("SELECT n FROM driver_rows WHERE who = %s ORDER BY n", (WHO,))
    rows = [row[0] for row in cursor.fetchall()]
    assert rows == [1, 3], rows
    db.close()


def error():
    db = connect()
    for _ in range(2):
        try:
            db.run("SELECT CAST(:n AS int) / 0", n=1)
            raise AssertionError("no error")
        except native.DatabaseError as error:
            assert code(error) == "22012", error
        assert db.run("SELECT CAST(:n AS int)", n=1) == [[1]]
    db.close()


def copy():
    db = connect()
    rows = "".join(f"{WHO}\t{n}\n" for n in range(1000, 2000))
    db.run("COPY driver_rows FROM STDIN", stream=io.StringIO(rows))
    out = io.StringIO()
    db.run(f"COPY (SELECT n FROM driver_rows WHERE who = '{WHO}' AND n >= 1000) TO STDOUT", stream=out)
    assert len(out.getvalue().splitlines()) == 1000
    try:
        db.run("COPY driver_rows FROM STDIN", stream=io.StringIO("no number\tx\n"))
        raise AssertionError("no error")
    except native.DatabaseError as error:
        assert code(error) == "22P02", error
    assert db.run("SELECT 1") == [[1]]
    db.close()


def large():
    db = connect()
    text = "x" * MEGABYTE
    assert db.run("SELECT CAST(:t AS text)", t=text) == [[text]]
    assert db.run("SELECT repeat('y', :n)", n=MEGABYTE) == [["y" * MEGABYTE]]
    db.close()


def reconnect():
    for n in range(10):
        db = connect()
        assert db.run("SELECT CAST(:n AS int)", n=n) == [[n]]
        db.close()


version(importlib.metadata.version("pg8000"))
step("connect", connects)
step("wrong password", wrong_password)
step("simple query", simple)
step("parameters", parameters)
step("prepared", prepared)
step("many prepared", many)
none("pipeline")
step("transaction", transaction)
step("error", error)
step("copy", copy)
step("large", large)
none("cancel")
step("reconnect", reconnect)
