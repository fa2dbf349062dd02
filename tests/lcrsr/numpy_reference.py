"""LCR-SER's Eq. 1-10 in NumPy with plain loops, one user at a time: the tests' second opinion.

Written from the paper and its readings, not from the library; float64 throughout.
"""

import numpy as np


def layer_norm(p, x):
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-6) * p["scale"] + p["bias"]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def attend(p, query, rows, heads):
    """One query over a list of rows; nothing to attend to gives zero."""
    if not rows:
        return np.zeros_like(query)
    d = len(query)
    width = d // heads
    q = query @ p["query"] + p["query_bias"]
    keys = [r @ p["key"] + p["key_bias"] for r in rows]
    values = [r @ p["value"] + p["value_bias"] for r in rows]
    mixed = np.zeros(d)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = np.array([q[part] @ k[part] / np.sqrt(width) for k in keys])
        for weight, value in zip(softmax(logits), values, strict=True):
            mixed[part] += weight * value[part]
    return mixed @ p["out"] + p["out_bias"]


def ffn(p, x):
    return np.maximum(x @ p["in_kernel"] + p["in_bias"], 0) @ p["out_kernel"] + p["out_bias"]


def block_attention(c, norm, x, update):
    return layer_norm(norm, x + update) if c.block == "post_ln" else x + update


def block_ffn(c, layer, x):
    if c.block == "post_ln":
        return layer_norm(layer["ffn_norm"], x + ffn(layer["ffn"], x))
    return ffn(layer["ffn"], x)


def encode(c, p, rows):
    """(inputs of each layer, outputs): lists of rows."""
    x, inputs = list(rows), []
    for number in range(c.layers):
        layer = p[f"layer_{number}"]
        inputs.append(x)
        out = []
        for i in range(len(x)):
            attended = attend(layer["msa"], x[i], x[: i + 1], c.heads)
            out.append(block_ffn(c, layer, block_attention(c, layer["msa_norm"], x[i], attended)))
        x = out
    return inputs, x


def reason(c, params, inputs, starts, cross=True):
    """Eq. 2-6; sides 'rec' and 'search'; returns side -> [h^(1), ..., h^(K)]."""
    other = {"rec": "search", "search": "rec"}
    contexts = {s: [list(rows) for rows in inputs[s]] for s in other}
    empty = {s: not inputs[s][0] for s in other}
    h, states = dict(starts), {s: [] for s in other}
    for k in range(c.max_steps):
        x = {s: h[s] + params[s]["step_positions"][k] for s in other}
        for number in range(c.layers):
            for s in other:
                contexts[s][number].append(x[s])
            new = {}
            for s in other:
                layer = params[s][f"layer_{number}"]
                source = "search" if c.self_context == "printed" else s
                own = contexts[source][number]
                if source != s and empty[source]:
                    own = []
                f = block_attention(
                    c, layer["msa_norm"], x[s], attend(layer["msa"], x[s], own, c.heads)
                )
                if cross:
                    seen = [] if empty[other[s]] else contexts[other[s]][number]
                    crossed = attend(layer["mca"], f, seen, c.heads)
                    f = block_attention(c, layer["mca_norm"], f, crossed)
                new[s] = block_ffn(c, layer, f)
            x = new
        h = x
        for s in other:
            states[s].append(h[s])
    return states


def aggregate(c, bilinear, candidate, rows):
    if c.attention == "mean":
        weights = np.full(len(rows), 1 / len(rows))
    elif c.attention == "scaled_dot":
        weights = softmax(np.array([candidate @ r for r in rows]) / np.sqrt(len(candidate)))
    else:
        weights = softmax(np.array([candidate @ bilinear @ r for r in rows]))
    return sum(w * r for w, r in zip(weights, rows, strict=True))


def embed_search(tables, words, clicks):
    words, clicks = [w for w in words if w], [v for v in clicks if v]
    row = np.zeros(tables["item"].shape[1])
    if words:
        row = row + np.mean([tables["word"][w] for w in words], 0)
    if clicks:
        row = row + np.mean([tables["item"][v] for v in clicks], 0)
    return row


def forward(c, params, tables, batch, active):
    """Logits [B, N] and the states of both passes, per user."""
    logits, cross_states, plain_states = [], [], []
    for b in range(len(batch["user"])):
        rec = [tables["item"][v] for v in batch["rec_items"][b] if v]
        search = [
            embed_search(tables, batch["query_words"][b, i], batch["clicked_items"][b, i])
            for i in range(batch["query_words"].shape[1])
            if batch["query_words"][b, i].any() or batch["clicked_items"][b, i].any()
        ]
        raw = {"rec": rec, "search": search}
        inputs, hidden, starts = {}, {}, {}
        for s, rows in raw.items():
            rows = [r + params[s]["positions"][i] for i, r in enumerate(rows)]
            inputs[s], hidden[s] = encode(c, params[s], rows)
            if not rows:
                hidden[s] = [params[s]["empty_start"]]
            starts[s] = hidden[s][-1]
        states = reason(c, params, inputs, starts)
        cross_states.append(states)
        plain_states.append(reason(c, params, inputs, starts, cross=False))
        scores, p = [], params["scorer"]
        for v in batch["candidates"][b]:
            e_v = tables["item"][v]
            w = {
                s: aggregate(c, p[f"{s}_bilinear"], e_v, hidden[s] + states[s][:active])
                for s in raw
            }
            x = np.concatenate([tables["user"][batch["user"][b]], w["search"], w["rec"], e_v])
            for i in range(len(c.mlp_widths) + 1):
                x = x @ p[f"mlp_{i}_kernel"] + p[f"mlp_{i}_bias"]
                if i < len(c.mlp_widths):
                    x = np.maximum(x, 0)
            scores.append(x[0])
        logits.append(scores)
    return np.array(logits), cross_states, plain_states
