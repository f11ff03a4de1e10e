"""What every command can be told: typed configs that refuse impossible values and name the remedy. No torch here.

A config comes from defaults, then `--config FILE.yaml`, then flags; a run folder keeps the result as `config.yaml`.
Fields stand in the order in which `--help` shows them: what to read and write, what the method is about, the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from keel.errors import InputError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _store(name: str) -> str:
    address = "://" in name or name.startswith("store:")
    return name if address or not name.partition("?")[0].endswith(STORE_ENDINGS) else f"store:{name}"


STORE_ENDINGS = ".db", ".sqlite", ".sqlite3"
StoreName = Annotated[str, AfterValidator(_store)]
"""`store:FILE.db` or a database URL; FILE.db alone is the same store. A name with another ending stays what it is."""


class Config(BaseModel):
    """Base of all configs: unknown names are refused, fields are documented beneath themselves."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """The form kept in a run folder and read by `--config`."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """A command's own fields come first in `--help`, those it shares with others after them."""
        fields = cls.__pydantic_fields__
        own = [name for name in cls.__annotations__ if name in fields]
        cls.__pydantic_fields__ = {n: fields[n] for n in [*own, *(n for n in fields if n not in own)]}


class Loading(Config):
    """How models and tokenizers are loaded."""

    trust_remote_code: bool = False
    """Run the Python code that a model's folder brings, which can do whatever you can: read it first. By default it
    never runs, and a model of a kind that transformers does not know is refused."""


class Machine(Loading):
    """Where and how numbers are computed."""

    seed: int = 0
    """Names every random draw of the run; the same seed gives the same figures."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1 …"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations; auto is bf16 on a GPU, and on a processor that multiplies it for a wide model."""
    micro_tokens: Count = 8192
    """Tokens in one forward pass. Lower it when memory is short; it cannot change a result beyond rounding."""


class Reading(Config):
    """How a data file is read."""

    limit: Count | None = None
    """Only the first N rows."""
    format: str | None = None
    """The data's format, where recognising it from its fields is not wanted."""
    columns: str | None = None
    """The file's names of columns, such as prompt=question,chosen=better,rejected=worse: on the left prompt, chosen,
    rejected, response_a, response_b, preference, response, score, completion, messages and others that an error lists,
    on the right the file's; prompt=meta.question reads inside. preference=label:0=a:1=b:2=tie says what values mean."""
    max_bad_share: Share = 0.05
    """Above this share of bad rows the command refuses; below it they are counted, numbered and left out. Rows with
    signs that the tokenizer does not know are used and numbered, up to this share of all tokens."""


class Spelling(Loading):
    """How conversations become tokens."""

    chat_template: str | None = None
    """A file, or a name (chatml, llama3, gemma, phi3, llama2, mistral, vicuna, zephyr, alpaca): in place of the model's
    own template, and saved with what is trained."""
    control_tokens: Literal["text", "refuse", "keep"] = "text"
    """What data become that spell a control token such as </s>: plain text, a dropped row, or the token itself."""


class Training(Machine, Reading, Spelling):
    """What all training commands share."""

    out: Path
    """Run folder to write."""
    learning_rate: Positive = 1e-5
    """Peak learning rate of AdamW."""
    batch_size: Count = 32
    """Bundles (a demonstration, a pair) per optimiser step. Pairs of one prompt stand together in a batch, a quarter of
    it at most: where there are many of them, it holds fewer prompts than pairs."""
    epochs: Count = 1
    """Passes over the data."""
    steps: Count | None = None
    """Stop after this many steps instead of after `epochs`."""
    max_length: Count = 1024
    """Tokens of prompt and completion together; longer completions are cut, counted and marked as truncated."""
    eval_data: Path | None = None
    """Held-out data in the same format."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Hold this share of the data out, split by prompt, where no --eval-data is given."""
    eval_every: Count | None = None
    """Steps between evaluations on held-out data; five times in a run by default."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warm-up: to 0 along a line or a cosine, or not at all."""
    warmup: Share = 0.05
    """Share of the steps during which the learning rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients of each role are clipped to this norm."""
    save_every: Count | None = None
    """Steps between checkpoints, besides the best one; five times in a run by default."""
    keep_checkpoints: Count = 1
    """Latest checkpoints to keep, besides the best one."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder."""


class SFTConfig(Training):
    """Supervised fine-tuning: imitate the completions, token by token. Plain text rows pre-train."""

    model: str
    """Checkpoint folder, run folder or hub name of a causal language model."""
    data: str
    """Demonstrations: prompt and completion, chat messages, or plain text."""
    out: Path
    """Run folder to write."""
    learning_rate: Positive = 2e-5


class RewardConfig(Training):
    """Reward model: a decoder with a scalar head, trained by Bradley-Terry on preference pairs."""

    model: str
    """Causal language model to start from (its backbone; the head starts at zero), or a reward folder to go on with."""
    data: str
    """Preference pairs."""
    out: Path
    """Run folder to write."""
    learning_rate: Positive = 1e-5


class DPOConfig(Training):
    """Direct preference optimisation: raise the chosen answer over the rejected one, relative to a frozen reference."""

    model: str
    """Policy to start from: checkpoint folder, run folder or hub name."""
    data: str
    """Preference pairs."""
    out: Path
    """Run folder to write."""
    beta: Positive = 0.1
    """Strength of the pull to the reference (tau in IPO). Smaller moves further away."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Which function of the margin; see `keel.objectives.dpo_loss`. The margin is of summed log-probabilities, in `ipo`
    too, as in its paper; TRL's ipo averages them per token, which `ipo_average` does here."""
    ipo_average: bool = False
    """With loss=ipo, divide each answer's log-ratio by its tokens, as TRL does; 1 / (2 beta) is then one per token."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels: conservative DPO with `sigmoid`, unbiased with `robust`."""
    length_alpha: float = 0.0
    """Penalty per token of extra length inside the sigmoid; takes away the gain of merely longer answers."""
    reference: str | None = None
    """Frozen reference; the starting policy by default."""
    reference_logps: Literal["cached", "live"] = "cached"
    """Reference log-probabilities computed once before training, or with every batch."""
    reference_cache: Path | None = None
    """File that keeps the cached ones for further runs on the same data and reference; in the run folder by default."""
    best_by: Literal["displacement", "loss", "accuracy", "last"] = "displacement"
    """Which held-out checkpoint is kept: that of the lowest loss among those whose chosen answers have not become much
    less likely (where all have, the one where they did least); of the lowest loss; the highest accuracy; the last."""
    learning_rate: Positive = 1e-6

    @model_validator(mode="after")
    def _options_that_would_do_nothing(self) -> DPOConfig:
        if self.label_smoothing and self.loss in ("ipo", "hinge"):
            raise ValueError(
                f"label_smoothing has no meaning for loss={self.loss}: use sigmoid or robust, or set it to 0"
            )
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("loss=robust needs label_smoothing, the share of flipped labels, above 0")
        if self.ipo_average and self.loss != "ipo":
            raise ValueError(f"ipo_average has no meaning for loss={self.loss}: use ipo, or leave it out")
        if self.length_alpha and self.loss == "ipo":
            raise ValueError("length_alpha is not defined for loss=ipo: use sigmoid, hinge or robust")
        return self


class Sampling(Machine, Reading, Spelling):
    """How completions are drawn."""

    max_new_tokens: Count = 256
    """Length limit of a completion; one that reaches it has no EOS and is marked truncated."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 takes the likeliest token each time."""
    max_rows: Count = 256
    """Completions decoded at once."""


class PPOConfig(Training, Sampling):
    """PPO: sample, score with a frozen reward, improve the policy near its frozen reference (KL penalty in the reward).

    The value function is a model of its own with its own optimiser, so no value coefficient is needed.
    """

    model: str
    """Policy to start from; its frozen copy is the reference."""
    reward: str
    """Reward model folder, `rule:package.module:function` or `rule:FILE.yaml`."""
    prompts: str
    """Prompts to sample from."""
    out: Path
    """Run folder to write."""
    steps: Count | None = 100
    """Rollouts."""
    rollout_size: Count = 64
    """Prompts per rollout."""
    samples_per_prompt: Count = 2
    """Completions per prompt; two or more let every rollout measure the distance to the optimum."""
    batch_size: Count = 16
    """Prompts per minibatch, with all their completions; each minibatch is one optimiser step."""
    epochs: Count = 4
    """Passes over each rollout."""
    beta: NonNegative = 0.05
    """KL penalty per nat, in units of the score; with `target_kl` its starting value."""
    target_kl: Positive | None = None
    """Adapt beta so that the KL per sequence stays near this many nats."""
    kl_horizon: Count = 10_000
    """Sequences over which the adaptive beta reacts; must exceed a fifth of a rollout's completions."""
    learning_rate: Positive = 1e-6
    value_learning_rate: Positive | None = None
    """Of the value model; the policy's by default."""
    clip: Positive = 0.2
    """The ratio to the sampling policy earns nothing beyond 1 ± clip."""
    value_clip: Positive = 0.2
    """The value may move this far from its old value before the loss ignores the gain."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """GAE's trade of bias (0) against variance (1)."""
    truncation: Literal["penalty", "bootstrap", "score"] = "penalty"
    """A completion without EOS gets `missing_eos_score`; or what the critic expects of its end; or its own score."""
    missing_eos_score: float = -1.0
    """Score of a truncated completion, after centring (with truncation=penalty)."""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """First rollouts in which only the value model learns."""
    keep_samples: Annotated[int, Field(ge=0)] = 8
    """Prompts of each rollout whose completions go into `samples.jsonl`."""
    temperature: Positive = 1.0
    """Divides the logits, in sampling and in every log-probability alike."""

    @model_validator(mode="after")
    def _impossible_combinations(self) -> PPOConfig:
        if self.steps is None:
            raise ValueError("steps is how many rollouts there are: give a number")
        if 5 * self.kl_horizon <= self.rollout_size * self.samples_per_prompt:
            raise ValueError(
                "kl_horizon must exceed a fifth of the completions in a rollout, or beta could turn negative"
            )
        if self.target_kl is not None and self.beta == 0:
            raise ValueError("target_kl adapts beta from its starting value, which must be above 0")
        return self


class GenerateConfig(Sampling):
    """Sample completions from any causal language model."""

    model: str
    """Checkpoint folder, run folder or hub name."""
    prompts: str
    """File of prompts."""
    out: Path
    """JSONL file to write: one line per prompt with its completions."""
    n: Count = 1
    """Completions per prompt."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the fewest likeliest words with this probability; PPO trains on what it draws, and has no such cut."""


class BestOfNConfig(GenerateConfig):
    """Best-of-N: sample N completions per prompt, score them, keep the best; costs N times the serving, no training."""

    reward: str
    """Reward model folder, `rule:package.module:function` or `rule:FILE.yaml`."""
    n: Count = 16


class CollectConfig(Sampling):
    """Draw answers to prompts, have them judged, and keep both in a store. Stopped anywhere, the same call goes on.

    Raters: `rule:FILE.yaml` or `rule:package.module:function`; `judge:NAME`, a model behind an OpenAI-compatible
    endpoint; `local:MODEL`, a causal language model in this process; `people`, on the page of `keel annotate`;
    `simulated`, the embedded world's people.
    """

    model: str
    """What answers: checkpoint folder, run folder or hub name; with `server` the model's name there."""
    prompts: str
    """File of prompts or chats, a log of chats (up to the last question), or a store, whose prompts are answered."""
    store: StoreName
    """Where all is kept: FILE.db (also written store:FILE.db) or a database URL; made if it is not there."""
    rater: list[str] = []
    """Who judges, one or several; without any, answers are only drawn and kept."""
    n: Count = 2
    """Answers per prompt; all n (n - 1) / 2 comparisons are judged."""
    server: str | None = None
    """OpenAI-compatible address of what answers, such as http://localhost:8000/v1; by default it is this process."""
    personal: Literal["keep", "mask", "drop"] = "keep"
    """Prompts with e-mail addresses, phone or card numbers, IBANs, IP addresses: keep, ask with [email] …, or drop."""
    near_duplicates: Literal["keep", "drop"] = "keep"
    """Keep all prompts that share most of their words with an earlier one, or drop them."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the fewest likeliest words with this probability."""
    temperature: Positive = 1.0
    """Divides the logits; answers must differ, so it is above 0."""
    rubric: Path | None = None
    """YAML file of dimensions and guidelines for judges; overall quality by default."""
    judge_server: str | None = None
    """OpenAI-compatible address of `judge:NAME`; OPENAI_BASE_URL or OpenAI's own by default."""
    judge_temperature: NonNegative | None = 0.0
    """Of `judge:NAME`; `none` for models that take no temperature: their verdicts vary from call to call."""
    judge_reply_tokens: Count = 1024
    """Length limit of a judge's reply, its reasoning included; a reply that is cut there gives no verdict."""
    judge_timeout: Positive = 60.0
    """Seconds for one reply of a judge, to its last byte."""
    judge_retries: Annotated[int, Field(ge=0)] = 5
    """Repetitions of a request to a judge that failed for a while."""
    judge_first_wait: Positive = 0.5
    """Seconds before the first repetition; doubled before each further one, up to half a minute."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the servers' key; the key itself is written nowhere."""
    server_key_variable: str | None = None
    """The same for `server` alone, where the judge's key is another; `key_variable` by default."""
    concurrency: Count = 8
    """Requests to a server at once."""
    deadline: Positive = 300.0
    """Seconds for one pair or prompt: all its requests, repetitions and waits."""
    price_in: NonNegative | None = None
    """The judge's price per million tokens read."""
    price_out: NonNegative | None = None
    """The judge's price per million tokens written."""
    budget: Positive | None = None
    """Money for the judge; when it is spent, no further pair is begun."""
    token_budget: Count | None = None
    """The same in tokens."""
    out: Path | None = None
    """JSON file for the figures, besides the screen."""

    @model_validator(mode="after")
    def _options_that_would_do_nothing(self) -> CollectConfig:
        if self.server is not None:
            for name in Spelling.model_fields.keys() - Loading.model_fields.keys():
                if getattr(self, name) != Spelling.model_fields[name].default:
                    raise ValueError(f"{name} has no meaning with server, which renders chats itself: leave it out")
        return self


class DataConfig(Reading):
    """What the commands on preference data share."""

    data: str
    """Judgments or preference pairs: a file in any format that Keel knows, `store:FILE.db` or a database URL."""
    out: Path | None = None
    """JSON file to write as well."""


class DataStatsConfig(DataConfig):
    """Count prompts, answers and judgments, and say how they lean: sides, lengths, models as raters."""


class DataAgreementConfig(DataConfig):
    """How far raters agree on the same answers: per cent, Cohen's and Fleiss' kappa, Krippendorff's alpha."""


class DataCheckConfig(DataConfig, Machine, Spelling):
    """Whether data are fit to train on: rows that are wrong, leaks, biases, personal data, and pairs against a model.

    Exit code 2 where a training command would refuse them.
    """

    data: str
    """Pairs, judgments, demonstrations or prompts: a file, `store:FILE.db`, a database URL, a hub data set."""
    model: str | None = None
    """Model to train on them: its tokenizer and template are tried, and pairs compared with its own answers."""
    eval_data: str | None = None
    """Data to be held out; what stands in both is a leak."""
    page: Path | None = None
    """HTML page to write."""
    max_length: Count = 1024
    """Tokens of prompt and completion together in training."""
    temperature: Positive = 1.0
    """At which the model draws its own answers."""
    compare: Count = 400
    """Pairs to compare with the model's own, drawn at random; copies of the model are trained on them, six times."""


class DataConvertConfig(Reading):
    """Write data in another format, or into a store. What the target cannot hold is refused, not dropped."""

    data: str
    """A file in any format that Keel knows, `store:FILE.db`, a database URL, a hub data set, or a folder; of the last
    two NAME:SPLIT or NAME:SUBSET:SPLIT is another part than the split train."""
    out: StoreName
    """File to write (.jsonl, .json, .csv, .parquet; text ones also .gz), or a store to add to (.db, a database URL)."""
    to: str | None = None
    """Format to write; a store needs none. Judgments: hh, rewardbench, rewardbench-2, oasst, llama-factory,
    llama-factory-sharegpt, orca, ms-swift, ms-swift-messages, axolotl, rm-bench, lists, trl, kto, kto-messages,
    openai-preferences, ultrafeedback, helpsteer2, helpsteer2-pairs, helpsteer3, shp, openai-summaries, pandalm,
    alpacaeval, llmbar, judgebench, label-studio, label-studio-min, argilla, preference, two-scores, ranks, scores,
    score. Demonstrations: prompt-completion, messages, alpaca, sharegpt, text."""
    pairs: bool = False
    """Write the pairs that training derives: what most raters say; ties and splits make none, and are counted. As kto
    each is a good and a bad answer; as demonstrations (messages, …) the chosen answers are written."""


class DataSplitConfig(DataConfig):
    """Write `train.jsonl` and `held-out.jsonl`, preference pairs with no prompt in both."""

    out: Path
    """Folder to write."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the pairs to hold out, as exact as whole prompts allow."""
    seed: int = 0
    """Names the draw: the same seed and prompts give the same split."""


class StoreConfig(Config):
    """A store that a command changes or copies."""

    store: StoreName
    """FILE.db (also written store:FILE.db) or a database URL."""


class DataForgetConfig(StoreConfig):
    """Erase a person on request: name, judgments, comments. It cannot be undone."""

    rater: str
    """The rater's name in the store."""


class DataMergeConfig(StoreConfig):
    """Add prompts, answers and judgments of another store, each once; its tasks and accounts stay its own."""

    other: StoreName
    """The store to read."""


class DataBackupConfig(StoreConfig):
    """Copy a store into one SQLite file while others may write to it; PostgreSQL too."""

    out: Path
    """SQLite file to write."""


class AnnotateConfig(Config):
    """Serve the page where people judge, one process over one store. Who may sign in: `keel raters add`."""

    store: StoreName
    """Where tasks and judgments are kept: FILE.db (also written store:FILE.db) or a database URL; made if it is not
    there."""
    tasks: str | None = None
    """File of answers to judge: prompt and completions as `keel generate` writes them, prompt, response_a and
    response_b, or any format of preferences, whose verdicts are left aside; by default what the store holds."""
    gold: str | None = None
    """File of pairs with known verdicts: shown among the others, to tell how far each rater can be relied on."""
    kind: Literal["pair", "score", "ranking"] | None = None
    """Every two answers side by side, each answer by itself, or all answers to a prompt in order; pairs by default.
    This and the next two are kept in the store: whoever starts again need not repeat them."""
    rubric: Path | None = None
    """YAML file: `dimensions:` and beneath it one `name: guideline` each; overall quality by default."""
    one_at_a_time: bool = False
    """Ask about one dimension of the rubric at a time, in place of all on one page."""
    overlap: Count = 1
    """People who are to judge each task; tasks that are there already never get fewer than they had."""
    gold_every: Annotated[int, Field(ge=2)] = 10
    """One in so many tasks is one of --gold, as long as there are any."""
    lease: Positive = 15.0
    """Minutes for one task; after them it may go to somebody else."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    https: bool = False
    """The page is reached by HTTPS, through a proxy: cookies then travel by HTTPS only."""
    limit: Count | None = None
    """Only the first N rows of the files."""
    columns: str | None = None
    """The names of columns in --tasks and --gold, such as prompt=question,response_a=left,response_b=right: on the left
    Keel's names, on the right the files'; a dot reads inside objects. --gold may have Keel's own."""
    max_bad_share: Share = 0.05
    """Above this share of bad rows in a file the command refuses; below it they are counted, numbered and left out."""


class RatersAddConfig(StoreConfig):
    """Let a person sign in to the annotation page; prints a token that is kept nowhere else."""

    name: str
    """Under this name judgments are stored."""
    role: Literal["rater", "adjudicator", "admin"] = "rater"
    """A rater judges; an adjudicator also decides where raters disagree, and sees the figures; so does an admin."""
    address: str = "http://127.0.0.1:8000"
    """Where the page will be, for the link."""


class RatersListConfig(StoreConfig):
    """Who may sign in."""


class RatersRevokeConfig(StoreConfig):
    """Take a person's token away; judgments stay (`keel data forget` erases them)."""

    name: str
    """As in `keel raters list`."""


class DemoConfig(Config):
    """The whole story on the embedded world: pre-train, SFT, votes, reward model, DPO, PPO, best-of-N, report."""

    out: Path = Path("runs/demo")
    """Folder for all runs, `report.html` and `summary.json`. Finished steps in it are reused."""
    seed: int = 0
    """Names every random draw."""


def refuse_existing(path: Path, resume: bool = False) -> None:
    """Refuse an --out that cannot be written: earlier work, or with `resume` what is no run, or a path below a file."""
    base = next(p for p in (path, *path.absolute().parents) if p.exists())
    if base != path and not base.is_dir():
        raise InputError(f"{path} cannot be written, since {base} is a file: choose another --out")
    exists = path.exists() and (path.is_file() or any(path.iterdir()))
    if exists and not resume:
        raise InputError(f"{path} already exists: choose another --out, remove it, or add --resume to go on with a run")
    if exists and not (path / "config.yaml").is_file():
        raise InputError(
            f"{path} is not a run folder (no config.yaml in it): choose the --out of the run to resume, or remove it"
        )
