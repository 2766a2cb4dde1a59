// An agent: its handlers answer calls of any caller, and discovery and presence tell that it is there.

import { encode } from "@msgpack/msgpack";
import { Svcm } from "@nats-io/services";

import {
  BusError,
  decodeFrame,
  decodeMessage,
  encodeFrame,
  isInbox,
  pack,
  rowError,
  unpack,
  VERSION,
} from "./frames.js";
import { Presence } from "./presence.js";

const SERVICE = "aikoryu-agents"; // of every process that has agents
const MOST_HOPS = 64;

/**
 * Serve an agent.
 *
 * A handler is `async (message, call) => reply`. Of `call`, `signal` aborts when the caller withdraws, `deadline` is
 * the time in ms until which it waits, and `chain` belongs into what the handler asks itself. What it throws is
 * answered as `handler_failed`, a BusError with its own code.
 */
export async function serve(
  connection,
  name,
  handlers,
  { prefix = "aikoryu", namespace = "default", capabilities = [], replyPrefix = "_INBOX" } = {},
) {
  const root = `${prefix}.v1.${namespace}`;
  const service = await new Svcm(connection).add({ name: SERVICE, version: "1.0.0", queue: "" });
  const agent = new Agent(connection, name, root, `js-${service.id}`, replyPrefix);
  for (const [handler, run] of Object.entries(handlers)) {
    const onFrame = (error, message) => error ?? agent.onFrame(handler, run, message);
    service.addEndpoint(`agent-${name}-${handler}`, {
      subject: `${root}.agent.${name}.${handler}`,
      queue: `agent.${name}`,
      handler: onFrame,
      metadata: { kind: "unary" },
    });
    agent.subscribe(`${root}.agent.${name}.all.${handler}`, onFrame);
  }
  const presence = new Presence(
    connection,
    root,
    agent.process,
    name,
    capabilities,
    Object.keys(handlers),
    replyPrefix,
  );
  await connection.flush();
  return {
    process: agent.process,
    /** Take no more calls, answer those that are held, and go. */
    async stop() {
      presence.stop();
      await service.stop();
      await agent.drain();
    },
  };
}

class Agent {
  #connection;
  #name;
  #inbox;
  #held = new Map(); // frames not answered whole, by client and number
  #controls = [];
  #nameless = 0;

  constructor(connection, name, root, process, replyPrefix) {
    this.#connection = connection;
    this.#name = name;
    this.#inbox = replyPrefix;
    this.process = process;
    this.subscribe(`${root}.ctl`, (error, message) => error ?? this.#onControl(message));
  }

  subscribe(subject, callback) {
    this.#controls.push(this.#connection.subscribe(subject, { callback }));
  }

  async drain() {
    await Promise.all([...this.#held.values()].map((held) => held.done));
    await Promise.all(this.#controls.map((subscription) => subscription.drain()));
  }

  /** Answer a frame: each row a call, answered when it has its reply. */
  onFrame(handler, run, message) {
    if (!isInbox(message.reply, this.#inbox)) return; // who asks can name any subject as its reply
    let held = { id: 0, reply: message.reply };
    try {
      const request = decodeFrame(message.data);
      const { v, n, id = 0, client = `nameless ${++this.#nameless}`, again = 0, stream, ttl_ms: ttl } = request;
      held = { id, again, client, reply: message.reply, rows: n, open: n, aborts: [], began: Date.now() };
      if (v !== VERSION)
        throw new BusError("bad_version", `the frame is of version ${v}, this agent speaks ${VERSION}`);
      const known = this.#held.get(keyOf(held));
      if (known) {
        known.again = Math.max(known.again, again); // sent again, and it is under way
        return;
      }
      if (stream) throw new BusError("wrong_kind", `${this.#name}.${handler} answers once: call it`);
      if (!(n >= 1)) throw new BusError("bad_frame", `n is ${n}: a frame needs at least one row`);
      held.deadline = ttl ? held.began + Number(ttl) : Infinity;
      const messages = texts(request, "message");
      const chains = request.cols.chain ? texts(request, "chain") : [];
      const calls = messages.map((each, row) =>
        this.#row(held, row, `${this.#name}.${handler}`, run, each, chains[row]),
      );
      this.#held.set(keyOf(held), held);
      held.done = Promise.all(calls).then(() => this.#held.delete(keyOf(held)));
    } catch (error) {
      const refused = error instanceof BusError ? error : new BusError("bad_frame", `not a request: ${error.message}`);
      this.#answer(held, { err: [rowError(refused, 0, 0)], last: true });
    }
  }

  async #row(held, row, hop, run, data, chain) {
    const abort = new AbortController();
    held.aborts[row] = abort;
    await null; // after the whole frame has been taken
    let answer;
    try {
      const call = { signal: abort.signal, deadline: held.deadline, chain: through(chain, hop) };
      const reply = (await run(decodeMessage(data), call)) ?? null;
      const column = typeof data === "string" ? pack("utf8", [JSON.stringify(reply)]) : pack("bin", [encode(reply)]);
      answer = { at: [[row, 1]], cols: { reply: column } };
    } catch (error) {
      answer = { err: [rowError(asBusError(error, hop), row)] };
    }
    held.open -= 1;
    const by = { engine: this.process, batch: held.rows, queue_us: 0, run_us: 1000 * (Date.now() - held.began) };
    if (!abort.signal.aborted) this.#answer(held, { ...answer, by, last: held.open === 0 });
  }

  #answer(held, reply) {
    this.#connection.publish(
      held.reply,
      encodeFrame({ v: VERSION, id: held.id, again: held.again || undefined, ...reply }),
    );
  }

  /** A caller withdraws, or asks which of its frames are held: else it would send those again that take long. */
  #onControl(message) {
    let said;
    try {
      said = decodeFrame(message.data);
    } catch {
      return; // every process hears it; nobody waits for an answer
    }
    if (!message.reply) {
      const held = this.#held.get(keyOf(said));
      const rows = said.rows?.length ? said.rows : (held?.aborts.keys() ?? []);
      for (const row of rows) held?.aborts[row]?.abort();
    } else if (isInbox(message.reply, this.#inbox)) {
      const ids = (said.ids ?? []).filter((id) => this.#held.has(keyOf({ client: said.client, id })));
      if (ids.length) this.#connection.publish(message.reply, encodeFrame({ v: VERSION, ids }));
    }
  }
}

function keyOf({ client, id }) {
  return `${client}/${id}`;
}

function texts(request, name) {
  const column = request.cols?.[name];
  if (column?.t !== "bin" && column?.t !== "utf8") {
    throw new BusError("bad_column", `column '${name}' is missing, or no strings`);
  }
  return unpack(column, request.n);
}

/** The chain of what a handler asks; it ends where the handler would wait for itself. */
function through(data, hop) {
  const [id, hops] = data?.length ? decodeMessage(data) : [`js-${Date.now()}-${Math.random()}`, []];
  if (hops.includes(hop))
    throw new BusError("call_cycle", `${hop} would wait for itself: ${[...hops, hop].join(" → ")}`);
  if (hops.length >= MOST_HOPS)
    throw new BusError("call_cycle", `more than ${MOST_HOPS} handlers wait for one another`);
  return [id, [...hops, hop]];
}

function asBusError(error, hop) {
  return error instanceof BusError
    ? error
    : new BusError("handler_failed", `${hop}: ${error?.name}: ${error?.message}`);
}
