"""How each weight of a network is to be stored, so that the least quality is lost within a budget:
what each way to store it takes (`costs`), what it loses (`sensitivity`: by Hessian traces, or measured), how long it takes (`latency`,
measured by `timing`), and what is chosen: by an integer programme (`integer_programme`), or by HAQ's agent (`agent`, `ddpg`).
"""
