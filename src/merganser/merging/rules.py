"""All merging rules by name: ``merganser merge --list`` prints them, and a recipe names one of them."""

from __future__ import annotations

from merganser.errors import InputError, nearest
from merganser.merging import (
    breadcrumbs,
    dare,
    della,
    ema,
    fisher,
    karcher,
    linear,
    magmax,
    model_stock,
    opcm,
    sce,
    slerp,
    task_arithmetic,
    ties,
    tunable_magmax,
)
from merganser.merging.rule import Rule

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        linear.RULE,
        task_arithmetic.RULE,
        slerp.RULE,
        karcher.RULE,
        ties.RULE,
        dare.RULE,
        dare.RULE_TIES,
        della.RULE,
        della.RULE_LINEAR,
        breadcrumbs.RULE,
        breadcrumbs.RULE_TIES,
        sce.RULE,
        model_stock.RULE,
        magmax.RULE,
        tunable_magmax.RULE,
        fisher.RULE,
        ema.RULE,
        opcm.RULE,
    )
}


def get_rule(name: str) -> Rule:
    """Look a rule up by its name.

    Raises:
        InputError: there is none.
    """
    if name not in RULES:
        raise InputError(
            f"There is no merging rule '{name}'.", f"{nearest(name, RULES)} Known: {', '.join(RULES)}.".strip()
        )
    return RULES[name]
