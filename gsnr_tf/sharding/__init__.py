"""Who owns which shard of the parameters, and the update that goes with it."""
