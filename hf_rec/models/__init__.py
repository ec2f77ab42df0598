"""Models as `PretrainedConfig` + `PreTrainedModel`, and the compact head of causal LMs. No loss, no file, no trainer."""
