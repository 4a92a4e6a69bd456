"""How much each matrix matters: nats of KL per unit of error."""
