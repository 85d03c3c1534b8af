"""python -m reward_service check SCORER: does a scorer keep its contract, and what are its numbers like?"""

from __future__ import annotations

import argparse

from reward_service.cli.options import add_scorer, served_reward, table

ABOUT = "test a scorer of your own: what it must keep, its orders of magnitude and its time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_scorer(parser, or_address=False)
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="a prompt to test with; repeat it for more (without any: the scorer's check_prompts, or "
        "prompts that name objects and texts)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the checks and print what they found. Returns 1 where one failed."""
    from reward_service.cli.checks import Verdict, check_reward

    findings = check_reward(served_reward(arguments), arguments.prompt)
    rows = [[finding.verdict.value, finding.check, finding.detail] for finding in findings]
    print(table(["", "check", "found"], rows, left=3))
    for finding in findings:
        if finding.advice:
            print(f"\n{finding.check}: {finding.advice}")
    failed = sum(finding.verdict is Verdict.FAILED for finding in findings)
    print(f"\n{failed} of {len(findings)} checks failed." if failed else "\nThe scorer keeps its contract.")
    return 1 if failed else 0
