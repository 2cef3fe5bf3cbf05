"""The compiler of the native subset (native.py): functions to LLVM text."""

from __future__ import annotations

import ast

from ringfence.translate.native import REGISTRY, NativeFunction

_BINARY = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.BitAnd: "and",
    ast.BitOr: "or",
    ast.BitXor: "xor",
    ast.FloorDiv: "udiv",
    ast.Mod: "urem",
    ast.LShift: "shl",
    ast.RShift: "lshr",
}
_COMPARE = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "ult", ast.LtE: "ule", ast.Gt: "ugt", ast.GtE: "uge"}


class _Compiler:
    def __init__(self, function: NativeFunction, externals: dict[str, int]) -> None:
        self.f = function
        self.externals = externals
        self.lines: list[str] = []
        self.locals: dict[str, str] = {}
        self.count = 0
        self.terminated = False
        self.loops: list[tuple[str, str]] = []

    def fail(self, node: ast.AST, why: str) -> Exception:
        return SyntaxError(f"{self.f.name}: line {getattr(node, 'lineno', 0)}: {why}")

    def op(self, text: str) -> str:
        self.count += 1
        self.line(f"%t{self.count} = {text}")
        return f"%t{self.count}"

    def line(self, text: str) -> None:
        if not self.terminated:
            self.lines.append("  " + text)

    def label(self) -> str:
        self.count += 1
        return f"L{self.count}"

    def start(self, label: str) -> None:
        if not self.terminated:
            self.line(f"br label %{label}")
        self.lines.append(label + ":")
        self.terminated = False

    def branch(self, label: str) -> None:
        self.line(f"br label %{label}")
        self.terminated = True

    def compile(self) -> str:
        tree = self.f.tree
        names = list(self.f.parameters)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in names:
                names.append(node.id)
        for name in names:
            self.locals[name] = f"%l_{name}"
            self.line(f"%l_{name} = alloca i64")
        for name in self.f.parameters:
            self.line(f"store i64 %{name}, ptr %l_{name}")
        self.block(tree.body)
        if not self.terminated:
            self.line("ret i64 0")
        parameters = ", ".join(f"i64 %{p}" for p in self.f.parameters)
        return f"define dso_local i64 @{self.f.name}({parameters}) #0 {{\nentry:\n" + "\n".join(self.lines) + "\n}\n"

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]):
                self.line(f"store i64 {self.expression(node.value)}, ptr {self.locals[name]}")
            case ast.AugAssign(target=ast.Name(id=name)):
                old = self.op(f"load i64, ptr {self.locals[name]}")
                self.line(
                    f"store i64 {self.op(f'{_BINARY[type(node.op)]} i64 {old}, {self.expression(node.value)}')}, ptr {self.locals[name]}"
                )
            case ast.Return():
                self.line(f"ret i64 {self.expression(node.value) if node.value else 0}")
                self.terminated = True
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.Expr():
                self.expression(node.value)
            case ast.If():
                yes, no, after = self.label(), self.label(), self.label()
                self.condition(node.test, yes, no)
                self.start(yes)
                self.block(node.body)
                if not self.terminated:
                    self.branch(after)
                self.start(no)
                self.block(node.orelse)
                self.start(after)
            case ast.While():
                head, body, after = self.label(), self.label(), self.label()
                self.start(head)
                self.condition(node.test, body, after)
                self.start(body)
                self.loops.append((head, after))
                self.block(node.body)
                self.loops.pop()
                if not self.terminated:
                    self.branch(head)
                self.start(after)
            case ast.Break():
                self.branch(self.loops[-1][1])
            case ast.Continue():
                self.branch(self.loops[-1][0])
            case ast.Pass():
                pass
            case _:
                raise self.fail(node, f"{type(node).__name__} is not in the subset")

    def condition(self, node: ast.expr, yes: str, no: str) -> None:
        match node:
            case ast.BoolOp():
                for value in node.values[:-1]:
                    middle = self.label()
                    self.condition(value, middle if isinstance(node.op, ast.And) else yes, no if isinstance(node.op, ast.And) else middle)
                    self.start(middle)
                self.condition(node.values[-1], yes, no)
            case ast.UnaryOp(op=ast.Not()):
                self.condition(node.operand, no, yes)
            case ast.Compare(ops=[operator], comparators=[right]):
                c = self.op(f"icmp {_COMPARE[type(operator)]} i64 {self.expression(node.left)}, {self.expression(right)}")
                self.line(f"br i1 {c}, label %{yes}, label %{no}")
                self.terminated = True
            case ast.Constant(value=True):
                self.branch(yes)
            case _:
                c = self.op(f"icmp ne i64 {self.expression(node)}, 0")
                self.line(f"br i1 {c}, label %{yes}, label %{no}")
                self.terminated = True

    def expression(self, node: ast.expr) -> str:
        constant = self.constant(node)
        if constant is not None:
            return str(constant - (1 << 64) if constant >> 63 else constant)
        match node:
            case ast.Name(id=name):
                if name not in self.locals:
                    raise self.fail(node, f"{name} is not defined")
                return self.op(f"load i64, ptr {self.locals[name]}")
            case ast.BinOp():
                return self.op(f"{_BINARY[type(node.op)]} i64 {self.expression(node.left)}, {self.expression(node.right)}")
            case ast.UnaryOp(op=ast.Invert()):
                return self.op(f"xor i64 {self.expression(node.operand)}, -1")
            case ast.UnaryOp(op=ast.USub()):
                return self.op(f"sub i64 0, {self.expression(node.operand)}")
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                yes, no, after = self.label(), self.label(), self.label()
                self.condition(node, yes, no)
                for label in (yes, no):
                    self.start(label)
                    self.branch(after)
                self.start(after)
                return self.op(f"phi i64 [1, %{yes}], [0, %{no}]")
            case ast.IfExp():
                yes, no, after = self.label(), self.label(), self.label()
                self.count += 1
                cell = f"%x{self.count}"
                self.lines.insert(0, f"  {cell} = alloca i64")
                self.condition(node.test, yes, no)
                for label, value in ((yes, node.body), (no, node.orelse)):
                    self.start(label)
                    self.line(f"store i64 {self.expression(value)}, ptr {cell}")
                    self.branch(after)
                self.start(after)
                return self.op(f"load i64, ptr {cell}")
            case ast.Call(func=ast.Name(id=name)):
                return self.call(node, name)
        raise self.fail(node, f"{ast.dump(node)} is not in the subset")

    def constant(self, node: ast.expr) -> int | None:
        if (
            isinstance(node, ast.Call)
            or any(isinstance(n, ast.Name) and (n.id in self.locals) for n in ast.walk(node))
            or any(isinstance(n, ast.Call) for n in ast.walk(node))
        ):
            return None
        if isinstance(node, (ast.Compare, ast.BoolOp, ast.IfExp)):
            return None
        value = eval(compile(ast.Expression(node), self.f.name, "eval"), self.f.globals)
        return int(value) & 0xFFFFFFFFFFFFFFFF

    def call(self, node: ast.Call, name: str) -> str:
        a = [self.expression(x) for x in node.args]
        if name[:2] in ("ld", "st") and name[2:].isdigit():
            w = int(name[2:])
            p = self.op(f"inttoptr i64 {a[0]} to ptr")
            if name[:2] == "ld":
                v = self.op(f"load i{w}, ptr {p}, align 1")
                return v if w == 64 else self.op(f"zext i{w} {v} to i64")
            v = a[1] if w == 64 else self.op(f"trunc i64 {a[1]} to i{w}")
            self.line(f"store i{w} {v}, ptr {p}, align 1")
            return "0"
        match name:
            case "or32" | "and32":
                narrow = self.op(f"trunc i64 {a[1]} to i32")
                old = self.op(f"atomicrmw {name[:-2]} ptr {self.op(f'inttoptr i64 {a[0]} to ptr')}, i32 {narrow} seq_cst, align 4")
                return self.op(f"zext i32 {old} to i64")
            case "cas32" | "cas64":
                t, p = f"i{name[3:]}", self.op(f"inttoptr i64 {a[0]} to ptr")
                expected, new = [x if t == "i64" else self.op(f"trunc i64 {x} to i32") for x in a[1:]]
                pair = self.op(f"cmpxchg ptr {p}, {t} {expected}, {t} {new} seq_cst seq_cst, align {int(name[3:]) // 8}")
                old = self.op(f"extractvalue {{ {t}, i1 }} {pair}, 0")
                return old if t == "i64" else self.op(f"zext i32 {old} to i64")
            case "order":
                self.line('fence syncscope("singlethread") seq_cst')
                return "0"
            case "fence":
                self.line("fence seq_cst")
                return "0"
            case "relax":
                self.line('call void asm sideeffect "pause", "~{memory}"()')
                return "0"
            case "give_way":  # sched_yield
                self.line('call void asm sideeffect "mov $$24, %eax; syscall", "~{rax},~{rcx},~{r11},~{memory}"()')
                return "0"
            case "sar":
                return self.op(f"ashr i64 {a[0]}, {a[1]}")
            case "slt":
                return self.op(f"zext i1 {self.op(f'icmp slt i64 {a[0]}, {a[1]}')} to i64")
            case "sext32":
                return self.op(f"sext i32 {self.op(f'trunc i64 {a[0]} to i32')} to i64")
            case "copy_forward":
                self.op(
                    'call { i64, i64, i64 } asm sideeffect "rep movsb", "={rdi},={rsi},={rcx},0,1,2,~{memory}"'
                    f"(i64 {a[0]}, i64 {a[1]}, i64 {a[2]})"
                )
                return "0"
            case "fill64":
                self.op(
                    'call { i64, i64 } asm sideeffect "rep stosq", "={rdi},={rcx},0,{rax},1,~{memory}"'
                    f"(i64 {a[0]}, i64 {a[1]}, i64 {a[2]})"
                )
                return "0"
            case "invoke":  # invoke(function address, cpu, data)
                p = self.op(f"inttoptr i64 {a[0]} to ptr")
                return self.op(f"call i64 {p}(i64 {a[1]}, i64 {a[2]})")
            case "rdtsc":
                pair = self.op('call { i64, i64 } asm sideeffect "rdtsc", "={rax},={rdx}"()')
                low, high = self.op(f"extractvalue {{ i64, i64 }} {pair}, 0"), self.op(f"extractvalue {{ i64, i64 }} {pair}, 1")
                return self.op(f"or i64 {self.op(f'shl i64 {high}, 32')}, {low}")
        target = REGISTRY.get(name)
        if target is None and name not in self.externals:
            raise self.fail(node, f"{name} is not a native function")
        if len(a) != (len(target.parameters) if target else self.externals[name]):
            raise self.fail(node, f"{name}: wrong number of arguments")
        return self.op(f"call i64 @{name}({', '.join('i64 ' + x for x in a)})")


def module(externals: dict[str, int]) -> str:
    """LLVM text of all registered functions.  `externals`: functions defined elsewhere, with their parameter counts."""
    text = [_Compiler(f, externals).compile() for f in REGISTRY.values()]
    text += [f"declare dso_local i64 @{name}({', '.join(['i64'] * n)})" for name, n in externals.items() if name not in REGISTRY]
    text.append('attributes #0 = { nounwind noredzone noimplicitfloat "no-builtins" "no-jump-tables"="true" "frame-pointer"="none" }')
    return "\n".join(text)
