"""A recipe: one YAML file that defines an experiment at one scale, validated whole before anything runs.

It names the base model, the data of every stage, the reward, the evaluation, and in a block under its own name each
method's settings (whose classes, with their vetted defaults, live in the method's own file). What a block and a variant
may say, and what `posttrain tune` has chosen, is posttrain.lab.arms'.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from posttrain.core.config import Settings, apply_overrides, read_yaml, validate
from posttrain.core.errors import RequestError, suggest
from posttrain.data.sources import Source
from posttrain.eval_harness.posing import FEW_SHOT_SEED, Posing
from posttrain.lab.arms import LEARNED, Arm, Tuned, Weights, resolve_arm
from posttrain.lab.gpus import GPUS
from posttrain.rollout.settings import EngineKind, VllmSettings
from posttrain.trainers.model_settings import Adapter, read_adapter
from posttrain.trainers.preferences import Settings as PreferenceSettings
from posttrain.trainers.registry import get_method, method_names


class RecipeData(Settings):
    """Where each stage's rows come from."""

    sft: Source
    """Demonstrations."""
    sft_validation: Source | None = None
    """Held-out demonstrations for loss and perplexity; none: a share of `sft` is held out."""
    pairs: Source | None = None
    """Preference pairs that exist; none: the SFT policy's own samples on `preference_prompts` are compared."""
    preference_prompts: Source | None = None
    """Prompts whose sampled answers become preference pairs."""
    prompts: Source
    """Prompts that reinforcement learning samples from."""
    validation: Source
    """Held-out prompts that settings are chosen on: in the trials of `posttrain tune` and in training."""
    measured: Source | None = None
    """Prompts on which the table's KL, gold and learned reward are measured; none: those of `validation`, on which the
    gold reward of what was tuned is optimistic."""

    @property
    def measured_prompts(self) -> Source:
        """`measured`, or what stands in for it."""
        return self.measured or self.validation


class Evaluation(Settings):
    """What every checkpoint is evaluated on; equal for all rows of a table."""

    tasks: tuple[str, ...]
    """lm-eval task names, ours or any other."""
    table: dict[str, str] = Field(min_length=1)
    """What the table shows, in its order: `task/metric: column title`."""
    headline: str | None = None
    """The entry of `table` that decides: verdicts and ranks are about it; none: the last one."""
    few_shot: int | None = None
    """Examples before each question; none: the task's own number."""
    limit: int | None = Field(default=None, gt=1)
    """Items a task; none: all. One item has no standard error."""
    batch_size: int = Field(default=128, gt=0)
    """Sequences a forward pass."""
    max_gen_toks: int | None = Field(default=None, gt=0)
    """Longest generated answer in tokens; none: the task's own limit."""
    include_path: Path | None = None
    """A folder with the user's own lm-eval tasks."""
    chat_template: bool = True
    """Whether items are posed as a conversation; stock lm-eval, and the reference lab, pose them as plain text."""
    fewshot_as_multiturn: bool | None = None
    """Whether examples are turns of that conversation; none: yes, where there is one."""
    few_shot_seed: int = FEW_SHOT_SEED
    """Which examples are drawn, where a task draws them; the default is lm-eval's."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The precision of the evaluation; none: float32 on a CPU, the saved one on a GPU."""
    policy_prompts: int = Field(default=512, gt=1)
    """How many of the measured prompts (`data.measured`) KL, gold and learned reward are measured on."""
    policy_max_tokens: int = Field(default=96, gt=0)
    """Longest completion in that measurement."""

    @model_validator(mode="after")
    def _known_tasks(self) -> Self:
        for key in self.table:
            task, slash, metric = key.partition("/")
            if task not in self.tasks or not slash or not metric:
                raise ValueError(f"table entry '{key}' must be task/metric with a task of {', '.join(self.tasks)}")
        if self.fewshot_as_multiturn and not self.chat_template:
            raise ValueError("fewshot_as_multiturn makes turns of a conversation; it needs chat_template")
        if self.headline is not None and self.headline not in self.table:
            raise ValueError(f"headline '{self.headline}' must be an entry of table: {', '.join(self.table)}")
        return self

    @property
    def posing(self) -> Posing:
        """How items are put to a model."""
        return Posing(
            self.few_shot,
            self.chat_template,
            self.fewshot_as_multiturn,
            self.few_shot_seed,
            self.max_gen_toks,
            self.dtype,
        )

    @property
    def headline_column(self) -> str:
        """The title of the column that decides."""
        return self.table[self.headline or list(self.table)[-1]]

    def columns(self) -> dict[tuple[str, str], str]:
        """(task, metric) to the column's title."""
        return {(key.partition("/")[0], key.partition("/")[2]): title for key, title in self.table.items()}


class Judging(Settings):
    """Whose answers `posttrain compare --judge` has judged against the SFT policy's. It changes no stage and no
    evaluation."""

    task: str
    """The task of the evaluation whose answers are compared; a task that generates them."""
    judges: tuple[str, ...] = Field(min_length=1)
    """Sources of reward, each a judge: of a reward model's scores σ of the difference is the preference, of a
    verifier's its sign. `rm` is the recipe's own reward model; `gold` is what the others are held against."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.judges)) < len(self.judges):
            raise ValueError(f"judges names a source twice: {', '.join(self.judges)}")
        return self


class Budget(Settings):
    """Equal bounds for the arms of a comparison."""

    tokens: int | None = Field(default=None, ge=1)
    """Tokens trained and generated together; None for no bound."""
    seconds: float | None = Field(default=None, gt=0)
    """Seconds of training; None for no bound."""

    @property
    def bounds(self) -> dict[str, float]:
        """Those that are set, by name."""
        return self.model_dump(exclude_none=True)


class ExpectedTokens(Settings):
    """Mean lengths in tokens of the base's tokenizer; none: the longest that the settings let through."""

    sft: int | None = Field(default=None, gt=0)
    """A demonstration."""
    pair: int | None = Field(default=None, gt=0)
    """Both answers of a preference pair, the prompt counted with each."""
    pair_prompt: int | None = Field(default=None, gt=0)
    """The prompt of a preference pair; none: nothing, which is most memory."""
    prompt: int | None = Field(default=None, gt=0)
    """A prompt that is sampled from."""
    completion: int | None = Field(default=None, gt=0)
    """A sampled answer."""


class Expected(Settings):
    """What `posttrain plan` cannot see without the data. It changes no stage."""

    rows: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """By field of `data` the usable rows of a source that says no `rows`."""
    tokens: ExpectedTokens = ExpectedTokens()


class Price(Settings):
    """What a machine costs."""

    per_hour: float = Field(ge=0)
    """Price of an hour."""
    currency: str = "USD"
    """Its currency."""
    machine: str
    """The machine that has this price, for example `one L4 on demand`."""


class Recipe(Settings):
    """An experiment, but for its method and seed."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Names the folder under runs/."""
    description: str = ""
    """A sentence for people."""
    model: str
    """The base: `nano`, a folder, a Hub id, or `random:qwen2-tiny`, an untrained one to try a recipe with."""
    revision: str | None = None
    """The Hub commit, tag or branch of the base; resolved to a commit and recorded. `compare` and `tune` take a commit
    only."""
    data: RecipeData
    """Rows of every stage."""
    reward: Weights = Field(default={LEARNED: 1.0}, min_length=1)
    """Weights of the named reward sources; a name alone has weight 1. `rm` is the recipe's own reward model."""
    adapter: Adapter | None = None
    """`full`, `lora` or `qlora`, or a section of its settings: what every method trains that says nothing else in its
    own section, which then counts whole."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of every method that says no other; unsaid, each has its own default."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Likewise; the reward model reads with sdpa whatever this says."""
    gradient_checkpointing: bool = False
    """Likewise."""
    liger: bool = False
    """Likewise."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Further reward sources: a name to `path/to/file.py:function` or to a reward-model checkpoint."""
    gold: str = "verifier"
    """The verifier that is always logged and measured beside the learned reward."""
    evaluation: Evaluation
    """How every checkpoint is evaluated."""
    judge: Judging | None = None
    """What `posttrain compare --judge` judges; none: nothing that it could."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of trainer and services; none: all cores. Another number gives other last digits."""
    engine: EngineKind = "auto"
    """What the run's own policy service generates with; `vllm` runs in an environment of its own (`make vllm`)."""
    vllm: VllmSettings = VllmSettings()
    """For `engine: vllm`."""
    on_policy: PreferenceSettings = PreferenceSettings(source=LEARNED, select="extremes", label_noise=0.0)
    """The pairs of methods with `pairs: on_policy`: the SFT policy's own answers, best and worst by a reward source
    (SimPO's best recipe, Meng et al. 2024, section 3)."""
    blocks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by method, as the recipe's sections under the methods' names say them."""
    compare: tuple[str, ...] | None = None
    """The arms that `posttrain compare` compares unless told otherwise; none: every method that makes a policy."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """What a stage (by method) and an `evaluation` took where that was measured: for estimates of time, until a run
    of the same kind lies under runs/."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further arms: a name to `method` and what differs from that method's block."""
    grids: dict[str, dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]] = Field(default_factory=dict)
    """By arm and setting the values that `posttrain tune` tries in place of the method's own grid, the nano lab's.
    The first of each is in use until tuning has chosen. A variant without a grid has its method's."""
    tuned: dict[str, Tuned] = Field(default_factory=dict)
    """By arm what `posttrain tune` chose; it writes this section. A block's own value goes before it."""
    budget: Budget = Budget()
    """Where every arm stops, if it has not ended before."""
    gpu: str | None = None
    """The card that the recipe is made for, as `posttrain plan` calls it; `train --dry-run` then also says what the
    stages take there. None: no GPU in particular."""
    expected: Expected = Expected()
    """Sizes of the data, for `posttrain plan`."""
    price: Price | None = None
    """What an hour of the machine costs; none: the table shows no price."""

    @field_validator("adapter", mode="before")
    @classmethod
    def _adapter_in_a_word(cls, value: Any) -> Any:
        return read_adapter(value)

    @field_validator("gpu")
    @classmethod
    def _known_card(cls, value: str | None) -> str | None:
        if value is not None and value.lower() not in GPUS:
            raise ValueError(f"must be a card that is known {suggest(value.lower(), GPUS)}")
        return value

    def arm(self, name: str) -> Arm:
        """The method or variant called so, its settings resolved; RequestError for an unknown name or setting."""
        return resolve_arm(self, name)

    def compared(self) -> tuple[str, ...]:
        """The arms of a comparison: all that are named for it, or every method that makes a policy or a choice."""
        if self.compare is not None:
            return self.compare
        described = {name: get_method(name) for name in method_names()}
        return tuple(name for name, m in described.items() if m.makes in ("policy", "choice") and name != "sft")

    def arm_names(self) -> list[str]:
        """Everything that can be trained: methods and variants."""
        return [*method_names(), *self.variants]


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = files("posttrain.lab") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe called so, or in that YAML file, with `key=value` overrides put in; RequestError for what is wrong."""
    path = recipe_path(name_or_path)
    return parse_recipe(apply_overrides(read_yaml(path), overrides), f"recipe {name_or_path}")


def recipe_path(name_or_path: str) -> Path:
    """The YAML file of a shipped recipe's name, or of a path; RequestError for an unknown name."""
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    if name_or_path in recipe_names():
        return Path(str(files("posttrain.lab") / "recipes" / f"{name_or_path}.yaml"))
    raise RequestError(f"unknown recipe '{name_or_path}' {suggest(name_or_path, recipe_names())}")


def parse_recipe(mapping: Mapping[str, Any], where: str) -> Recipe:
    """A recipe of what its YAML says, every arm of it resolved; RequestError that starts with `where`."""
    methods = method_names()
    own = [name for name in Recipe.model_fields if name != "blocks"]
    for key in mapping:
        if key not in own and key not in methods:
            raise RequestError(f"{where}: unknown key '{key}' {suggest(key, [*own, *methods])}")
    for key, block in mapping.items():
        if key in methods and not isinstance(block or {}, dict):
            raise RequestError(f"{where}: '{key}' must be a section of settings, not {block!r}")
    sections = {key: value for key, value in mapping.items() if key in own}
    blocks = {key: value or {} for key, value in mapping.items() if key in methods}
    recipe = validate(Recipe, {**sections, "blocks": blocks}, where)
    # Methods first: what is wrong in a section is told of the section, not of a variant that takes it over.
    arms = [*methods, *recipe.variants]
    for section, name in [*(("tuned", name) for name in recipe.tuned), *(("grids", name) for name in recipe.grids)]:
        if name not in arms:
            known = suggest(name, arms)
            raise RequestError(f"{where}: {section}.{name}: unknown method '{name}' {known}; remove or rename it")
    for name in dict.fromkeys(
        [*recipe.blocks, *recipe.tuned, *recipe.grids, *recipe.variants, *(recipe.compare or ())]
    ):
        try:
            recipe.arm(name)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None
    return recipe
