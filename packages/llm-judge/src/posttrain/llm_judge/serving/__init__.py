"""What the judge service is made of; BentoML runs it from `posttrain.llm_judge.service`."""
