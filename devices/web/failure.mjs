// What a person can mend: the message says what is wrong, the hint what to try. As edge_sd/errors.py.

export class Failure extends Error {
  constructor(message, hint) {
    super(message);
    this.name = "Failure";
    this.hint = hint;
  }
}

export function require(condition, message, hint) {
  if (!condition) throw new Failure(message, hint);
}
