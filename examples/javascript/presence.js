// Presence: tells callers that an agent is there, what it can do, and when it goes.

import { decode } from "@msgpack/msgpack";

import { encodeFrame, isInbox } from "./frames.js";

const TTL_MS = 5000;
const BEATS = 3; // in a time to live: two may be lost

/** The word of a process with one agent, whose load it does not tell. */
export class Presence {
  #connection;
  #subject;
  #base;
  #list;
  #questions;
  #timer;

  constructor(connection, root, process, name, capabilities, handlers, replyPrefix) {
    this.#connection = connection;
    this.#subject = `${root}.presence.${process}`;
    this.#base = { process, incarnation: BigInt(Date.now()) };
    const version = { version: 1, told: 0, ttl_ms: TTL_MS };
    this.#list = {
      kind: "list",
      ...this.#base,
      ...version,
      kinds: [[capabilities, handlers]],
      names: [name],
      of: [0],
      loads: [0],
    };
    this.#questions = connection.subscribe(`${root}.presence`, {
      callback: (error, message) => error ?? this.#onQuestion(message, process, replyPrefix),
    });
    this.#tell(this.#list);
    this.#timer = setInterval(() => this.#tell({ kind: "beat", ...this.#base, ...version }), TTL_MS / BEATS);
  }

  stop() {
    clearInterval(this.#timer);
    this.#questions.unsubscribe();
    this.#tell({ kind: "bye", ...this.#base });
  }

  #tell(announcement) {
    if (!this.#connection.isClosed()) this.#connection.publish(this.#subject, encodeFrame(announcement));
  }

  #onQuestion(message, process, replyPrefix) {
    const asked = decode(message.data).process ?? "";
    if ((asked === "" || asked === process) && isInbox(message.reply, replyPrefix)) {
      this.#connection.publish(message.reply, encodeFrame(this.#list));
    }
  }
}
