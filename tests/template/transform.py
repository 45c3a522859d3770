"""Prints a SAM template as CloudFormation gets it: `python -m tests.template.transform FILE`.

Some mistakes, circular references for example, only show there.
"""

import json
import sys
from pathlib import Path
from typing import Any

import boto3
from cfnlint.decode.cfn_yaml import load
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

from darkroom_local.processes import ROOT

REGION = "us-east-1"


def transformed(template: Path = ROOT / "template.yaml") -> dict[str, Any]:
    """The template after SAM's transform, with local code paths in place of uploaded ones."""
    source = json.loads(json.dumps(load(str(template))))
    for resource in source["Resources"].values():
        properties = resource.get("Properties", {})
        for name in ("CodeUri", "ContentUri"):
            if name in properties:
                properties[name] = f"s3://code/{properties[name]}"
    # The template writes all roles out, so no managed policies need to be looked up.
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name=REGION))
    return dict(translator.translate(source, {}))


def main() -> None:
    sys.stdout.write(json.dumps(transformed(Path(sys.argv[1])), indent=2) + "\n")


if __name__ == "__main__":
    main()
