"""Read a configuration of mlx-lm."""

from __future__ import annotations

from ...recipe.foreign import REASON_BY_KEY
from .source import STEPS_NOTE, TRUNCATION_NOTE, ConfigConverter

# -- the tools


def convert_mlx_lm(s: ConfigConverter) -> None:
    s.base("model")
    name = s.take("hf_dataset.name", "hf_dataset.path", "hf_dataset.0.name", "hf_dataset.0.path")
    if name is not None:
        s.train("hf_dataset.name", name)
        s.lose("data", "hf_dataset comes before it")
        for theirs, ours in {
            "prompt_feature": "prompt",
            "completion_feature": "completion",
            "chat_feature": "messages",
        }.items():
            for key in (f"hf_dataset.{theirs}", f"hf_dataset.0.{theirs}"):
                s.carry(key, f"data.fields.{ours}")
    else:
        s.train("data", s.take("data") or "data")
    text = s.take("hf_dataset.text_feature", "hf_dataset.0.text_feature")
    kind = "lm" if text else s.alike()
    s.put("(rows)", "task", kind or "chat")
    if not kind:
        s.change(
            "data",
            s.out.table["data"]["train"],
            "rows of messages or completions are taken (task: chat); for plain text: task: lm",
        )
    if text and text != "text":
        s.put("hf_dataset.text_feature", "task.text", text)
    how = s.take("fine_tune_type") or "lora"
    if how == "full":
        s.whole()
        s.lose("num_layers", "all weights of all layers are trained; space: {name: lora, layers: last N} has a choice")
    else:
        s.out.carried.append(("fine_tune_type", "space: lora"))
        s.put("(method)", "space.name", "lora")
        if how != "lora":
            s.change("fine_tune_type", how, "plain LoRA: the adapter that PEFT, vLLM and llama.cpp load")
        for key in ("num_layers", "lora_layers"):
            s.carry(key, "space.layers", lambda n: "all" if n in (-1, 0) else f"last {n}")
        rank = s.carry("lora_parameters.rank", "space.rank")
        if (scale := s.take("lora_parameters.scale")) is not None and isinstance(scale, (int, float)):
            alpha = scale * (rank if isinstance(rank, int) else 8)
            s.put(
                "lora_parameters.scale", "space.alpha", alpha, f"mlx-lm's scale is alpha / rank: alpha {alpha:g}", scale
            )
            s.lose("lora_parameters.alpha", "the scale is what mlx-lm uses")
        s.carry("lora_parameters.alpha", "space.alpha")
        if (keys := s.take("lora_parameters.keys")) is not None:
            s.targets("lora_parameters.keys", keys)
    s.carry("batch_size", "train.batch")
    s.carry("iters", "train.steps", note=STEPS_NOTE)
    s.carry("seed", "seed")
    if (length := s.carry("max_seq_length", "data.max_length")) is not None:
        s.put("max_seq_length", "data.on_overflow", "truncate", TRUNCATION_NOTE, length)
    s.carry("steps_per_eval", "eval.every")
    s.carry("adapter_path", "output.dir", note="runs lie in it, each with its log and its adapter")
    s.first_order("learning_rate", "optimizer")
    s.schedule("lr_schedule.name")
    s.lose("lr_schedule.arguments", REASON_BY_KEY["warmup"])
    s.kept(["train"], "zoedge finetune")
    s.kept(["test"], "test.jsonl of the folder is scored at the end, if it is there")
    if (mask := s.take("mask_prompt")) is not True:
        s.change("mask_prompt", bool(mask), "only the assistant's answers are scored; mlx-lm scores the question too")
    else:
        s.out.carried.append(("mask_prompt", "the assistant's answers are scored alone"))
    s.change("(quantisation)", None, "mlx-lm takes a model as it is; model.quantization is left at nf4")
