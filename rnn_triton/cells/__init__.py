"""The recurrence in torch, which every kernel is compared with."""
