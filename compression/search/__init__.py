"""How each weight of a network is to be stored, so that the least quality is lost within a budget.

costs               what each way to store a weight takes: bytes, loss, seconds
sensitivity         the loss: second-order (Hessian traces), or measured
integer_programme   the choice of least loss within a budget
"""
