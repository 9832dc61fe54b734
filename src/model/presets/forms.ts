/** The presets, each with its options. */
export const presetForms = {
  fsdp2: "fsdp2:dp=N[,tp=N][,ep=N][,replicas=N]",
  hf: "hf:N",
  vllm: "vllm[:tp=N][,dp=N][,pp=N][,ep][,placement=round_robin][,redundant=N][,all2all=NAME][,partition=N:N]",
} as const;
