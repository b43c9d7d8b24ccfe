// node-postgres.
'use strict'
const assert = require('assert')
const { pipeline } = require('stream/promises')
const { Readable } = require('stream')
const pg = require('pg')
const copy = require('pg-copy-streams')

const { DRIVERS_MODE: MODE, DRIVERS_WHO: WHO } = process.env
const STEP_MS = 30000
const STATEMENTS = 300
const MEGABYTE = 1 << 20

// Host, port, user, database and password are those of the environment.
async function connect(words) {
  const client = new pg.Client(words)
  client.on('error', () => {})
  await client.connect()
  return client
}

async function one(client, text, values) {
  return Object.values((await client.query(text, values)).rows[0])[0]
}

async function fails(what, code) {
  await assert.rejects(what, (error) => {
    assert.strictEqual(error.code, code, String(error))
    return true
  })
}

// Names of statements are the connection's; here each has its own.
const named = (name, text, values) => ({ name, text, values })

const steps = {
  async connect() {
    await (await connect()).end()
  },
  async 'wrong password'() {
    await fails(connect({ password: 'wrong' }), '28P01')
  },
  async 'simple query'() {
    const client = await connect()
    const both = await client.query('SELECT 1 AS n; SELECT 2 AS n')
    assert.deepStrictEqual(both.map((result) => result.rows[0].n), [1, 2])
    await client.end()
  },
  async parameters() {
    const client = await connect()
    assert.strictEqual(await one(client, 'SELECT $1::int + 1', [41]), 42)
    assert.strictEqual(await one(client, 'SELECT $1::text', ['é']), 'é')
    await client.end()
  },
  async prepared() {
    const client = await connect()
    for (let n = 0; n < 10; n++) assert.strictEqual(await one(client, named('twice', 'SELECT $1::int * 2', [n])), n * 2)
    await client.end()
  },
  async 'many prepared'() {
    await Promise.all([0, 1, 2].map(async (at) => {
      const client = await connect()
      for (let round = 0; round < 2; round++) {
        for (let n = 0; n < STATEMENTS; n++) {
          assert.strictEqual(await one(client, named(`s${n}`, `SELECT $1::int + ${n}`, [at])), at + n)
        }
      }
      await client.end()
    }))
  },
  async pipeline() {
    const client = await connect({ pipeline: true })
    const asked = []
    for (let n = 0; n < 100; n++) asked.push(one(client, named(`p${n % 20}`, `SELECT $1::int + ${n % 20}`, [n])))
    const failing = fails(client.query('SELECT 1 / $1::int', [0]), '22012')
    const after = one(client, 'SELECT $1::int', [7])
    assert.deepStrictEqual(await Promise.all(asked), [...Array(100).keys()].map((n) => n + (n % 20)))
    await failing
    assert.strictEqual(await after, 7)
    await client.end()
  },
  async transaction() {
    const client = await connect()
    if (MODE === 'statement') {
      await assert.rejects(client.query('BEGIN').then(() => client.query('SELECT 1')), /transaction block/)
      return
    }
    const insert = (n) => client.query('INSERT INTO driver_rows VALUES ($1, $2)', [WHO, n])
    await client.query('BEGIN')
    await insert(1)
    await client.query('COMMIT')
    await client.query('BEGIN')
    await insert(2)
    await client.query('ROLLBACK')
    await client.query('BEGIN')
    await insert(3)
    await client.query('SAVEPOINT a')
    await insert(4)
    await fails(client.query('SELECT 1/0'), '22012')
    await client.query('ROLLBACK TO a')
    await client.query('COMMIT')
    const { rows } = await client.query('SELECT n FROM driver_rows WHERE who = $1 ORDER BY n', [WHO])
    assert.deepStrictEqual(rows.map((row) => row.n), [1, 3])
    await client.end()
  },
  async error() {
    const client = await connect()
    for (let n = 0; n < 2; n++) {
      await fails(client.query('SELECT $1::int / 0', [1]), '22012')
      assert.strictEqual(await one(client, 'SELECT $1::int', [1]), 1)
    }
    await client.end()
  },
  async copy() {
    const client = await connect()
    const rows = [...Array(1000).keys()].map((n) => `${WHO}\t${1000 + n}\n`)
    await pipeline(Readable.from(rows), client.query(copy.from('COPY driver_rows FROM STDIN')))
    let out = ''
    const all = `COPY (SELECT n FROM driver_rows WHERE who = '${WHO}' AND n >= 1000) TO STDOUT`
    for await (const piece of client.query(copy.to(all))) out += piece
    assert.strictEqual(out.trim().split('\n').length, 1000)
    await fails(pipeline(Readable.from(['no number\tx\n']), client.query(copy.from('COPY driver_rows FROM STDIN'))), '22P02')
    assert.strictEqual(await one(client, 'SELECT 1'), 1)
    await client.end()
  },
  async large() {
    const client = await connect()
    const text = 'x'.repeat(MEGABYTE)
    assert.strictEqual(await one(client, 'SELECT $1::text', [text]), text)
    assert.strictEqual(await one(client, "SELECT repeat('y', $1)", [MEGABYTE]), 'y'.repeat(MEGABYTE))
    await client.end()
  },
  async cancel() {
    const client = await connect()
    const query = new pg.Query('SELECT pg_sleep(20)')
    const ended = new Promise((resolve, reject) => {
      query.on('end', resolve)
      query.on('error', reject)
    })
    client.query(query)
    setTimeout(() => new pg.Client().cancel(client, query), 500)
    await fails(ended, '57014')
    assert.strictEqual(await one(client, 'SELECT 1'), 1)
    await client.end()
  },
  async reconnect() {
    const pool = new pg.Pool({ max: 3 })
    for (let n = 0; n < 10; n++) assert.strictEqual(await one(pool, 'SELECT $1::int', [n]), n)
    await pool.end()
    const client = await connect()
    assert.strictEqual(await one(client, 'SELECT 1'), 1)
    await client.end()
  },
}

async function main() {
  console.log(`version ${require('pg/package.json').version}, node ${process.version.slice(1)}`)
  for (const [name, run] of Object.entries(steps)) {
    let timer
    const over = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not over after ${STEP_MS / 1000} s`)), STEP_MS)
    })
    try {
      await Promise.race([run(), over])
      console.log(`ok ${name}`)
    } catch (error) {
      console.log(`fail ${name}: ${String(error).replace(/\s+/g, ' ')}`)
    }
    clearTimeout(timer)
  }
  process.exit(0)
}

main()
