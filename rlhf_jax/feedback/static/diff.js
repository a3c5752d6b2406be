// What a correction changes, word by word: the longest common subsequence of words and of the blanks between them.

export function diff(before, after) {
  const a = before.match(/\s+|\S+/gu) || [];
  const b = after.match(/\s+|\S+/gu) || [];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a.at(-1 - tail) === b.at(-1 - tail)) tail++;
  const middle = between(a.slice(head, a.length - tail), b.slice(head, b.length - tail));
  return joined([
    ...a.slice(0, head).map((text) => ({ kind: "same", text })),
    ...middle,
    ...a.slice(a.length - tail).map((text) => ({ kind: "same", text })),
  ]);
}

function between(a, b) {
  if (a.length * b.length > 4e6) {
    return [{ kind: "removed", text: a.join("") }, { kind: "added", text: b.join("") }];
  }
  const length = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const parts = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      parts.push({ kind: "same", text: a[i] });
      i++;
      j++;
    } else if (j >= b.length || (i < a.length && length[i + 1][j] >= length[i][j + 1])) {
      parts.push({ kind: "removed", text: a[i++] });
    } else {
      parts.push({ kind: "added", text: b[j++] });
    }
  }
  return parts;
}

function joined(parts) {
  const result = [];
  for (const part of parts) {
    if (!part.text) continue;
    if (result.length && result.at(-1).kind === part.kind) result.at(-1).text += part.text;
    else result.push({ ...part });
  }
  return result;
}
