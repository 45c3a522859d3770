"""Every AWS call that a function can make, found by reading the code from its handler on.

A call graph with light type inference: the type of `self.queue` comes from annotations and from
what `__init__` assigns; a method of a class may be that of a subclass, and one of a protocol, or of
a receiver of unknown type, that of any class that the function creates. So it finds calls that no
run makes, at the price of a few that cannot happen.
"""

import ast
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from darkroom_local.processes import ROOT

PACKAGE = ROOT / "layers" / "darkroom" / "darkroom"
_CLIENTS = {
    "DynamoDBClient": "dynamodb",
    "LambdaClient": "lambda",
    "S3Client": "s3",
    "SecretsManagerClient": "secretsmanager",
    "SNSClient": "sns",
    "SQSClient": "sqs",
}
_CLIENT = "client:"  # prefix of the type of a boto3 client
_WRITES = {"Put", "Update", "Delete", "ConditionCheck"}  # the parts of a DynamoDB transaction
# Methods of the standard library: on a receiver of unknown type these say nothing.
_COMMON = {
    name
    for kind in (dict, list, set, str, bytes, Path, threading.Thread, ThreadPoolExecutor)
    for name in dir(kind)
}
type Function = ast.FunctionDef


@dataclass(frozen=True, order=True)
class AwsCall:
    """`by` is the class, or the function, that contains the call."""

    service: str
    method: str  # of the boto3 client, or a part of a transaction: Put, Update …
    by: str


@dataclass
class _Class:
    name: str
    bases: list[str]
    methods: dict[str, Function] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)  # their types

    @property
    def is_protocol(self) -> bool:
        return "Protocol" in self.bases


@dataclass
class _Program:
    classes: dict[str, _Class] = field(default_factory=dict)
    functions: dict[str, list[Function]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "_Program":
        program = cls()
        for path in sorted(folder.rglob("*.py")):
            # Modules may use the same name for a class of their own.
            text = re.sub(
                r"^class (_\w+)", rf"class \1_{path.stem}", path.read_text(), flags=re.MULTILINE
            )
            for name in re.findall(rf"^class (_\w+)_{path.stem}\b", text, flags=re.MULTILINE):
                text = re.sub(rf"\b{name}\b", f"{name}_{path.stem}", text)
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef):
                    program.classes[node.name] = _class(node)
                elif isinstance(node, ast.FunctionDef):
                    program.functions.setdefault(node.name, []).append(node)
        return program

    def inherits(self, name: str, ancestor: str) -> bool:
        bases = self.classes[name].bases if name in self.classes else []
        return ancestor in bases or any(self.inherits(base, ancestor) for base in bases)

    def attribute(self, owner: str, name: str) -> str:
        """The type of an attribute, "" if it is not known."""
        found = self.classes.get(owner)
        if found is None:
            return ""
        if name in found.attributes:
            return found.attributes[name]
        if name in found.methods:
            return _type(found.methods[name].returns)
        return next(filter(None, (self.attribute(b, name) for b in found.bases)), "")


def _class(node: ast.ClassDef) -> _Class:
    described = _Class(node.name, [_type(base) for base in node.bases])
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            described.methods[item.name] = item
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            described.attributes[item.target.id] = _type(item.annotation)
    if init := described.methods.get("__init__"):
        given = _parameters(init)
        for assign in (n for n in ast.walk(init) if isinstance(n, ast.Assign)):
            for target, value in _pairs(assign):
                if isinstance(target, ast.Attribute) and isinstance(value, ast.Name):
                    described.attributes[target.attr] = given.get(value.id, "")
                elif isinstance(target, ast.Attribute) and isinstance(value, ast.Call):
                    described.attributes[target.attr] = _type(value.func)
    return described


def _parameters(function: Function) -> dict[str, str]:
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return {argument.arg: _type(argument.annotation) for argument in arguments}


def _pairs(assign: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in assign.targets:
        if isinstance(target, ast.Tuple) and isinstance(assign.value, ast.Tuple):
            yield from zip(target.elts, assign.value.elts, strict=True)
        else:
            yield target, assign.value


def _type(annotation: ast.expr | None) -> str:
    """The name of the class in `X`, `"X"`, `X | None`, `X[T]`; of a boto3 client `client:s3`."""
    match annotation:
        case ast.Constant(value=str() as text):
            return _type(ast.parse(text, mode="eval").body)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _CLIENT + _CLIENTS[name] if name in _CLIENTS else name
        case ast.BinOp(left=left):
            return _type(left)
        case ast.Subscript(value=value):
            return _type(value)
    return ""


class _Walk:
    """What is reached from one handler, found by repeating until nothing new is reached."""

    def __init__(self, program: _Program) -> None:
        self.program = program
        self.created: set[str] = set()
        self.reached: dict[tuple[str, str, int], Function] = {}  # (class, name, line)
        self.calls: set[AwsCall] = set()

    def run(self, handler: Function) -> set[AwsCall]:
        self.reached["", handler.name, 0] = handler
        size = -1
        while size != len(self.reached) + len(self.created):
            size = len(self.reached) + len(self.created)
            for (owner, _, _), function in list(self.reached.items()):
                _Body(self, owner, function).visit_body()
        return self.calls

    def create(self, name: str) -> None:
        self.created.add(name)
        for method in ("__init__", "__post_init__", "__enter__", "__exit__", "__call__"):
            self.reach(name, method)

    def reach(self, owner: str, method: str) -> None:
        described = self.program.classes[owner]
        if method in described.methods:
            function = described.methods[method]
            self.reached[owner, method, function.lineno] = function
        for base in described.bases:
            if base in self.program.classes:
                self.reach(base, method)

    def reach_by_name(self, method: str) -> None:
        for owner in list(self.created):
            self.reach(owner, method)


class _Body:
    """One function: the types of its names, and what it reaches."""

    def __init__(self, walk: _Walk, owner: str, function: Function) -> None:
        self.walk, self.owner, self.function = walk, owner, function
        self.types = {"wiring": "Wiring", "self": owner, "cls": owner}
        for node in ast.walk(function):
            if isinstance(node, ast.FunctionDef):
                self.types |= {n: t for n, t in _parameters(node).items() if t}

    def visit_body(self) -> None:
        nodes = [node for statement in self.function.body for node in ast.walk(statement)]
        for assign in (node for node in nodes if isinstance(node, ast.Assign)):
            for target, value in _pairs(assign):
                if isinstance(target, ast.Name) and (found := self._infer(value)):
                    self.types[target.id] = found
        for node in nodes:
            self._visit(node)

    def _visit(self, node: ast.AST) -> None:
        program = self.walk.program
        match node:
            case ast.Name(id=name) if name in program.classes:
                self.walk.create(name)
            case ast.Name(id=name) if name in program.functions:
                for function in program.functions[name]:
                    self.walk.reached["", name, function.lineno] = function
            case ast.Dict(keys=keys) if self.owner:
                for key in keys:
                    if isinstance(key, ast.Constant) and key.value in _WRITES:
                        self.walk.calls.add(AwsCall("dynamodb", str(key.value), self.owner))
            case ast.Attribute(value=value, attr=attribute):
                self._reach_attribute(self._infer(value), attribute)

    def _reach_attribute(self, receiver: str, attribute: str) -> None:
        if receiver.startswith(_CLIENT):
            by = self.owner or self.function.name
            self.walk.calls.add(AwsCall(receiver.removeprefix(_CLIENT), attribute, by))
            return
        described = self.walk.program.classes.get(receiver)
        if described is not None and not described.is_protocol:
            self.walk.reach(receiver, attribute)
            for name in [n for n in self.walk.created if self.walk.program.inherits(n, receiver)]:
                self.walk.reach(name, attribute)
        elif described is not None or attribute not in _COMMON:
            self.walk.reach_by_name(attribute)

    def _infer(self, node: ast.expr) -> str:
        program = self.walk.program
        match node:
            case ast.Name(id=name):
                return name if name in program.classes else self.types.get(name, "")
            case ast.Attribute(value=value, attr=attribute):
                return program.attribute(self._infer(value), attribute)
            case ast.Call(
                func=ast.Attribute(attr="_client"), args=[ast.Constant(value=str() as service)]
            ):
                return f"{_CLIENT}{service}"  # of the wiring
            case ast.Call(func=ast.Name(id=name)) if name in program.functions:
                return _type(program.functions[name][0].returns)
            case ast.Call(func=function):
                return self._infer(function)
        return ""


def aws_calls(function: str) -> set[AwsCall]:
    """Of the function in functions/`function`/app.py."""
    module = ast.parse((ROOT / "functions" / function / "app.py").read_text())
    (handler,) = (n for n in module.body if isinstance(n, ast.FunctionDef) if n.name == "handler")
    return _Walk(_Program.read(PACKAGE)).run(handler)
