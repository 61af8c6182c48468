"""distrec audit [FILE.yaml …] [section.key=value …]

Reads prepared data, every artefact under data.root that was made from it, and those of the run folder
out=DIR.  Names the rows of each leak and exits with 1; clean data gives exit 0.  Targets that their user has had before are told, and are
no leak.

  a validation/test interaction inside a train-only artefact ·
  ids ordered by test order · negatives that contain positives · item text that holds another split

Example:  distrec audit configs/data/beauty.yaml out=runs/beauty
"""

from collections.abc import Sequence

from distrec import config as cfg
from distrec.data import audit, prepared
from distrec.runtime import DONE, FAILED, run


def main(argv: Sequence[str]) -> int:
    config = cfg.load(argv)
    if config.out and not config.out.is_dir():
        raise ValueError(f"out={config.out}: no such folder; there is nothing to audit")
    data = prepared.load(prepared.prepare(config.data))
    folders, others = audit.artefacts_of(data, config.data.root, *([config.out] if config.out else []))
    for told in audit.repeated_targets(data):
        print(told)
    findings = audit.audit(data, folders)
    for finding in findings:
        print(finding)
    names = ", ".join(folder.name for folder in folders) or "no further artefact"
    if others:
        print(
            f"not judged, for they were made from other data or from a file of vectors: {', '.join(map(str, others))}"
        )
    print(
        f"{data.folder} and {names}: {len(findings)} leaks found"
        if findings
        else f"{data.folder} and {names}: no leak found"
    )
    return FAILED if findings else DONE


if __name__ == "__main__":
    run(main, __doc__)
