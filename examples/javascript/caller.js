// A caller: operations of workers, agents' handlers, and streams of them.

import { encode } from "@msgpack/msgpack";
import { createInbox } from "@nats-io/transport-node";
import { randomBytes } from "node:crypto";

import { BusError, decodeFrame, decodeMessage, encodeFrame, pack, unpack, VERSION } from "./frames.js";

const AHEAD = 4; // answers of a stream asked for and not taken

/** Asks over one connection; replies come to one inbox, each frame's to a subject that ends in its number. */
export class Caller {
  #connection;
  #root;
  #timeoutMs;
  #inbox;
  #subscription;
  #client = (randomBytes(8).readBigUInt64LE() >> 1n) | 1n; // 63 bits; as a BigInt it is sent as an integer
  #last = 0;
  #waiting = new Map();

  constructor(
    connection,
    { prefix = "aikoryu", namespace = "default", timeoutMs = 30_000, inboxPrefix = undefined } = {},
  ) {
    this.#connection = connection;
    this.#root = `${prefix}.v1.${namespace}`;
    this.#timeoutMs = timeoutMs;
    this.#inbox = createInbox(inboxPrefix);
    this.#subscription = connection.subscribe(`${this.#inbox}.*`, {
      callback: (error, message) => (error ? this.#fail(error) : this.#onReply(message)),
    });
  }

  /** Ask for an operation: `columns` have `rows` rows each; the answer is an array of rows, `{column: value}`. */
  async call(operation, rows, columns, { parameters = undefined, timeoutMs = this.#timeoutMs } = {}) {
    const frame = { n: rows, cols: columns, p: parameters };
    return (await this.#exchange(`${this.#root}.${operation}`, frame, timeoutMs)).rows;
  }

  /** Ask an agent for one reply; in a handler, give its `call.chain`. */
  async ask(agent, handler, message, { timeoutMs = this.#timeoutMs, chain = undefined } = {}) {
    const frame = { n: 1, cols: columnsOf(message, chain) };
    const { rows } = await this.#exchange(this.#subject(agent, handler), frame, timeoutMs);
    return decodeMessage(rows[0].reply);
  }

  /** The items of a handler that streams; leaving the loop ends the generator behind it. */
  async *stream(agent, handler, message, { timeoutMs = this.#timeoutMs, chain = undefined } = {}) {
    const stream = ++this.#last;
    const { reply } = await this.#exchange(this.#subject(agent, handler), { n: 0, stream }, timeoutMs);
    let seq = 0;
    // A part waits for the answers before its own, so for that much longer.
    const pull = (cols) => {
      const answer = this.#exchange(reply.ctl, { n: 1, cols, stream, seq: seq++ }, AHEAD * timeoutMs);
      answer.catch(() => {}); // whoever leaves the loop early awaits it no more
      return answer;
    };
    const more = { more: pack("bool", [true]) };
    const pulls = [pull(columnsOf(message, chain))];
    while (pulls.length < AHEAD) pulls.push(pull(more));
    try {
      for (;;) {
        const [answer] = (await pulls.shift()).rows;
        yield* decodeMessage(answer.items);
        if (answer.end) return;
        pulls.push(pull(more));
      }
    } finally {
      this.#withdraw({ id: 0, stream });
    }
  }

  /** Fail what has no answer yet, and listen no more. */
  close() {
    this.#subscription.unsubscribe();
    this.#fail(new BusError("closed", "the caller was closed before the answer came"));
  }

  #subject(agent, handler) {
    return `${this.#root}.agent.${agent}.${handler}`;
  }

  /** Send a frame, and gather its replies until every row has one. */
  #exchange(subject, frame, timeoutMs) {
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#settle(id, new BusError("expired", `no answer of ${subject} within ${timeoutMs} ms`));
        this.#withdraw({ id });
      }, timeoutMs);
      this.#waiting.set(id, { subject, rows: Array(frame.n).fill(null), open: frame.n, timer, resolve, reject });
      const request = { v: VERSION, client: this.#client, id, ttl_ms: Math.max(1, Math.round(timeoutMs)), ...frame };
      try {
        this.#connection.publish(subject, encodeFrame(request), { reply: `${this.#inbox}.${id}` });
      } catch (error) {
        this.#settle(id, error);
      }
    });
  }

  #onReply(message) {
    const id = Number(message.subject.slice(this.#inbox.length + 1));
    const frame = this.#waiting.get(id);
    if (!frame) return;
    if (message.data.length === 0) {
      // The server says that nobody serves the subject. Otherwise a worker asks whether anybody still listens here.
      if (message.headers?.code === 503) this.#settle(id, new BusError("no_worker", `nobody serves ${frame.subject}`));
      return;
    }
    try {
      this.#take(id, frame, decodeFrame(message.data));
    } catch (error) {
      this.#settle(id, error);
    }
  }

  #take(id, frame, reply) {
    const [error] = reply.err ?? [];
    if (error) {
      this.#settle(id, new BusError(error.code, error.msg, error.retry_ms));
      return;
    }
    const runs = reply.at ?? [];
    const numbers = runs.flatMap(([first, count]) => Array.from({ length: count }, (_, row) => first + row));
    for (const number of numbers) frame.rows[number] ??= {};
    for (const [name, column] of Object.entries(reply.cols ?? {})) {
      unpack(column, numbers.length).forEach((value, place) => (frame.rows[numbers[place]][name] = value));
    }
    frame.open = frame.rows.filter((row) => row === null).length;
    if (frame.open === 0) this.#settle(id, null, { rows: frame.rows, reply });
  }

  #settle(id, error, answer = undefined) {
    const frame = this.#waiting.get(id);
    if (!frame) return;
    this.#waiting.delete(id);
    clearTimeout(frame.timer);
    if (error) frame.reject(error);
    else frame.resolve(answer);
  }

  #fail(error) {
    for (const id of [...this.#waiting.keys()]) this.#settle(id, error);
  }

  #withdraw(what) {
    if (!this.#connection.isClosed()) {
      this.#connection.publish(`${this.#root}.ctl`, encodeFrame({ v: VERSION, client: this.#client, ...what }));
    }
  }
}

function columnsOf(message, chain) {
  const columns = { message: pack("bin", [encode(message)]) };
  if (chain) columns.chain = pack("bin", [encode(chain)]);
  return columns;
}
