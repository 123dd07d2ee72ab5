"""A small language model behind `POST /v1/chat/completions`, for runs and tests without a network.

Requests that arrive together are answered as one batch. With `response_format: json_schema` the server writes
the fixed parts of the JSON itself and lets the model write the values, so a model of 135 M parameters, which
seldom gets JSON right, still answers in the form that was asked for; every value is the model's own text.
Started by `scripts/local_teacher.py serve`, which says why `transformers serve` is not used.

Deviations from OpenAI's interface: of `json_schema` the kinds that `local_reply` knows; `json_object` without a
schema is refused; no streaming, tools or several choices. Sampling draws from the 50 likeliest tokens with a seed
made from the request (or `seed`), so the same request in the same batch gives the same reply; in another batch the
last bits of the scores differ, and seldom a token.

Letters: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_reply import Choice, Fixed, Piece, Refused, Text, pieces

TOP = 50
BATCH = 16
#: Seconds that the first request of a batch waits for others.
GATHER = 0.05
#: Most tokens of a string value: of a reply's only one, of one among several, and of an entry of a list. From two
#: thirds on a value ends with its sentence.
ALONE_TOKENS, VALUE_TOKENS, ENTRY_TOKENS = 160, 48, 12
#: Share of its tokens that a value has at least: a small model likes to echo the key and stop.
LEAST = 0.25
#: Scores of tokens that the value has already are divided by this (negative ones multiplied).
PENALTY = 1.2


# -- one request -------------------------------------------------------------------------------------


@dataclass
class Job:
    """One request on its way to its reply.

    Attributes:
        prompt: token ids. plan: what is still to be written, None for free text.
        share, entry: most tokens of a value, and of an entry of a list.
        forced: ids that the server writes next. value: ids of the value being written.
        out: the reply so far as text. spent: tokens of the reply.
    """

    prompt: list[int]
    plan: list[Piece] | None
    limit: int
    temperature: float
    seed: int
    share: int
    entry: int
    done: Future[Job] = field(default_factory=Future)
    forced: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)
    out: list[str] = field(default_factory=list)
    spent: int = 0
    finish: str = ""
    seconds: float = 0.0

    def text(self) -> str:
        return "".join(self.out)


class Vocabulary:
    """What may stand inside a JSON string, token by token.

    Args:
        tokenizer: of the model. size: V of the model's scores.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        import torch

        texts = [tokenizer.decode([i]) if i < len(tokenizer) else "" for i in range(size)]
        special = set(tokenizer.all_special_ids)
        self.tokenizer = tokenizer
        self.inside = torch.tensor([i not in special and _plain(text) for i, text in enumerate(texts)])
        # These say that the value is over; the quotation mark itself is written by the server.
        ends = [
            i == tokenizer.eos_token_id or text.startswith(('"', "\n")) or "}" in text for i, text in enumerate(texts)
        ]
        self.ends = torch.tensor(ends)
        self.sentence = {i for i, text in enumerate(texts) if text.rstrip().endswith((".", "!", "?"))}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _plain(text: str) -> bool:
    """Whether a token can stand in a JSON string as it is. Parts of a character (U+FFFD alone) cannot."""
    return bool(text) and "\ufffd" not in text and not any(c in '"\\' or ord(c) < 32 for c in text)


# -- the model ---------------------------------------------------------------------------------------


class Engine:
    """Answers batches of jobs with one model, in a thread of its own.

    Args:
        folder: a plain Hugging Face folder. threads: of the processor. say: told about each batch.
    """

    def __init__(self, folder: Path, threads: int, say: Any = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", **source
        ).eval()
        self.vocabulary = Vocabulary(self.tokenizer, self.model.config.vocab_size)
        self.context = self.model.config.max_position_embeddings
        self._say, self._queue = say or (lambda line: None), queue.Queue()
        threading.Thread(target=self._serve, daemon=True).start()

    def job(self, body: Mapping[str, Any]) -> Job:
        """A request in OpenAI's form as a job. Raises Refused."""
        try:
            chat = [{"role": message["role"], "content": message["content"]} for message in body["messages"]]
            assert chat and all(isinstance(value, str) for message in chat for value in message.values())
        except (KeyError, TypeError, AssertionError):
            raise Refused("messages must be a non-empty list of {role, content} of text") from None
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt = self.vocabulary.ids(text)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 512
        if len(prompt) + limit > self.context:
            raise Refused(f"{len(prompt)} prompt tokens and {limit} for the reply exceed the context of {self.context}")
        form = body.get("response_format") or {"type": "text"}
        if form["type"] not in ("text", "json_schema"):
            raise Refused(f"response_format {form['type']!r} is not known here; use json_schema")
        plan = pieces(form["json_schema"]["schema"]) if form["type"] == "json_schema" else None
        temperature, seed = float(body.get("temperature", 0.7)), body.get("seed")
        if seed is None:
            asked = json.dumps([chat, form, temperature, limit], sort_keys=True)
            seed = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:6], "big")
        return Job(prompt, plan, limit, temperature, int(seed), *self._shares(plan or [], limit))

    def _shares(self, plan: Sequence[Piece], limit: int) -> tuple[int, int]:
        """Tokens of each value, and of each entry of a list, so that the whole reply fits into `limit`."""
        fixed = sum(len(self.vocabulary.ids(piece.text)) for piece in plan if isinstance(piece, Fixed))
        for piece in plan:
            if isinstance(piece, Choice):
                fixed += max(len(self.vocabulary.ids(option)) for option in piece.options)
        texts = [piece.short for piece in plan if isinstance(piece, Text)]
        entries, values = texts.count(True), max(1, texts.count(False))
        entry = max(1, min(ENTRY_TOKENS, (limit - fixed) // max(1, len(texts))))
        most = VALUE_TOKENS if len(texts) > 1 else ALONE_TOKENS
        return max(1, min(most, (limit - fixed - entries * entry) // values)), entry

    def submit(self, job: Job) -> Future[Job]:
        """Queue a job; its future gives it back with its reply."""
        self._queue.put(job)
        return job.done

    def _serve(self) -> None:
        while True:
            jobs = [self._queue.get()]
            until = time.monotonic() + GATHER
            while len(jobs) < BATCH:
                try:
                    jobs.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
                except queue.Empty:
                    break
            started = time.monotonic()
            try:
                self.run(jobs)
            except BaseException as error:  # whoever waits for a reply must hear of it
                for job in jobs:
                    job.done.set_exception(error)
                continue
            for job in jobs:
                job.seconds = time.monotonic() - started
                job.done.set_result(job)
            read, written = sum(len(job.prompt) for job in jobs), sum(job.spent for job in jobs)
            self._say(f"{len(jobs)} requests, {read:,} + {written:,} tokens, {time.monotonic() - started:.1f} s")

    def run(self, jobs: Sequence[Job]) -> None:
        """Write the replies of a batch, all rows one token at a time; a row that is done leaves the batch."""
        import torch
        from transformers.cache_utils import DynamicCache

        rows, noise = list(jobs), [torch.Generator().manual_seed(job.seed) for job in jobs]
        heads = [job.prompt + self._head(job) for job in jobs]
        length = max(map(len, heads))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(head)) + head for head in heads])
        mask = torch.tensor([[0] * (length - len(head)) + [1] * len(head) for head in heads])
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            while rows:
                places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                scores = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=places,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
                tokens = [self._next(job, row, draw) for job, row, draw in zip(rows, scores, noise, strict=True)]
                keep = [place for place, token in enumerate(tokens) if token is not None]
                if len(keep) < len(rows):
                    rows, noise = [rows[i] for i in keep], [noise[i] for i in keep]
                    if not rows:
                        break
                    cache.batch_select_indices(torch.tensor(keep))
                    mask = mask[keep]
                ids = torch.tensor([[tokens[i]] for i in keep])
                mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=mask.dtype)], dim=1)

    def _head(self, job: Job) -> list[int]:
        """Ids of the reply's fixed beginning, read together with the prompt."""
        if not job.plan:
            return []
        self._advance(job)
        head, job.forced = job.forced, []
        job.spent += len(head)
        return head

    def _advance(self, job: Job) -> None:
        """Take over the fixed parts that come next."""
        while job.plan and isinstance(job.plan[0], Fixed):
            text = job.plan.pop(0).text  # type: ignore[union-attr]
            job.out.append(text)
            job.forced += self.vocabulary.ids(text)

    def _next(self, job: Job, scores: Any, noise: Any) -> int | None:
        """The row's next token (scores: (V,)), or None once its reply is complete or its limit is reached."""
        if not job.forced:
            self._choose(job, scores, noise)
        if job.spent >= job.limit and not job.finish:
            if job.value:
                job.out.append(self.tokenizer.decode(job.value))
            job.finish = "length"
        if not job.forced:
            job.finish = job.finish or "stop"
        if job.finish:
            return None
        job.spent += 1
        return job.forced.pop(0)

    def _choose(self, job: Job, scores: Any, noise: Any) -> None:
        """Let the model write: puts the token (or what follows the value's end) into `job.forced`."""
        import torch

        if job.plan is None:
            token = self._sample(job, scores, noise)
            if token == self.tokenizer.eos_token_id:
                job.out.append(self.tokenizer.decode(job.value))
                job.finish = "stop"
                return
            job.value.append(token)
            job.forced.append(token)
            return
        if not job.plan:
            return
        piece = job.plan[0]
        if isinstance(piece, Choice):
            ids = [self.vocabulary.ids(option) for option in piece.options]
            best = max(range(len(ids)), key=lambda i: (scores[ids[i][0]].item(), -i))
            self._end(job, piece.options[best], ids[best])
            return
        assert isinstance(piece, Text)
        text = self.tokenizer.decode(job.value)
        if self._full(job, piece):
            self._end(job, text, [])
            return
        may_end = text.strip() and (piece.short or len(job.value) >= LEAST * job.share)
        allowed = self.vocabulary.inside | self.vocabulary.ends if may_end else self.vocabulary.inside
        token = self._sample(job, torch.where(allowed, scores, -torch.inf), noise)
        if self.vocabulary.ends[token]:
            self._end(job, text, [])
            return
        job.value.append(token)
        job.forced.append(token)

    def _full(self, job: Job, piece: Text) -> bool:
        count, share = len(job.value), job.entry if piece.short else job.share
        return count >= share or (count >= 2 * share // 3 and job.value[-1] in self.vocabulary.sentence)

    def _end(self, job: Job, text: str, ids: list[int]) -> None:
        """The value is complete: go on with what is fixed after it."""
        assert job.plan is not None
        piece = job.plan.pop(0)
        job.out.append(text.strip() if isinstance(piece, Text) else text)
        job.value = []
        job.forced += ids
        self._advance(job)

    def _sample(self, job: Job, scores: Any, noise: Any) -> int:
        """The likeliest token, or at a temperature one of the likeliest (Gumbel's trick: one draw per row)."""
        import torch

        if job.value:  # a model of this size gets caught in loops
            said = torch.tensor(sorted(set(job.value)))
            own = scores[said]
            scores = scores.index_copy(0, said, torch.where(own > 0, own / PENALTY, own * PENALTY))
        best = scores.topk(TOP)
        if job.temperature <= 0:
            return int(best.indices[0])
        gumbel = -torch.log(-torch.log(torch.rand(TOP, generator=noise).clamp(1e-9, 1 - 1e-7)))
        return int(best.indices[(best.values / job.temperature + gumbel).argmax()])


# -- HTTP --------------------------------------------------------------------------------------------


def application(engine: Engine, name: str) -> Any:
    """The FastAPI application that serves `engine` under the model name `name`."""
    import asyncio

    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    app = FastAPI(title="local teacher", docs_url=None, redoc_url=None)

    def refusal(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": {"message": text, "type": "invalid_request_error", "code": None}}, status)

    async def models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "local"}]}

    async def complete(request: Request) -> Any:
        try:
            body = await request.json()
            if body.get("model") != name:
                return refusal(404, f"there is no model {body.get('model')!r}; this server has {name!r}")
            job = engine.job(body)
        except (Refused, json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            return refusal(400, f"{type(error).__name__}: {error}")
        await asyncio.wrap_future(engine.submit(job))
        read, written = len(job.prompt), job.spent
        return {
            "id": f"chatcmpl-{job.seed:012x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": name,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": job.text()}, "finish_reason": job.finish}
            ],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }

    # `Request` is a local name: the annotation is given as a type, not as text.
    complete.__annotations__["request"] = Request
    app.get("/v1/models")(models)
    app.post("/v1/chat/completions")(complete)
    return app


def serve(folder: Path, name: str, port: int, threads: int) -> None:
    """Serve on loopback until stopped; prints one line when ready."""
    import uvicorn

    engine = Engine(folder, threads, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"serving {name} at http://127.0.0.1:{port}/v1 with {threads} threads", file=sys.stderr, flush=True)
    uvicorn.run(application(engine, name), host="127.0.0.1", port=port, log_level="warning")
