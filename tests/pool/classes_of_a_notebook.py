"""Classes and functions as notebooks define them, each with a value and what must hold of it.

Run as a program, it sends each value to a worker and back, and prints what does not hold, as JSON.
"""

import abc
import collections
import dataclasses
import enum
import functools
import json
from typing import (
    Generic,
    NamedTuple,
    NewType,
    NotRequired,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    TypeVarTuple,
    Unpack,
    get_type_hints,
    is_typeddict,
    runtime_checkable,
)

import attrs
import msgspec
import pydantic

from snakepit_kernel import Pool

T = TypeVar("T")


@dataclasses.dataclass
class DC:
    a: int


@dataclasses.dataclass(slots=True)
class DCS:
    a: int
    b: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class DCF:
    a: int


@dataclasses.dataclass
class DCG(Generic[T]):
    a: T


@dataclasses.dataclass(slots=True)
class DCGS(Generic[T]):
    a: T


@dataclasses.dataclass(kw_only=True, order=True)
class DCK(DC):
    z: int = 3


class NT(NamedTuple):
    a: int = 1

    def twice(self):
        return self.a * 2


class NTG(NamedTuple, Generic[T]):
    a: T = 1


nt = collections.namedtuple("nt", "a b")


class SubNT(nt):
    __slots__ = ()

    def s(self):
        return self.a + self.b


class TD(TypedDict):
    a: int
    b: NotRequired[str]


class TD2(TD, total=False):
    c: int


class MS(msgspec.Struct):
    a: int = 1

    def twice(self):
        return self.a * 2


class MSF(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    a: int = 1


class MSSub(MS):
    b: int = 2


class MSG(msgspec.Struct, Generic[T]):
    a: T


class MSTag(
    msgspec.Struct,
    tag="x",
    tag_field="kind",
    rename="camel",
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    my_a: int = 1
    __slots_note__ = 3


class E(enum.Enum):
    A = 1
    B = 2

    def hi(self):
        return self.name


class IE(enum.IntEnum):
    A = 1


class SE(enum.StrEnum):
    A = enum.auto()
    B = enum.auto()


class F(enum.Flag):
    A = 1
    B = 2
    AB = 3


class IF(enum.IntFlag):
    A = 1
    B = 2


class Planet(enum.Enum):
    EARTH = (5.9, 6.3)

    def __init__(self, mass, radius):
        self.mass = mass
        self.radius = radius


class NewE(enum.Enum):
    def __new__(cls, v, label):
        o = object.__new__(cls)
        o._value_ = v
        o.label = label
        return o

    A = (1, "eins")
    B = (2, "zwei")


class Alias(enum.Enum):
    A = 1
    ALSO = 1


@dataclasses.dataclass
class Mix:
    x: int
    y: int = 5


class ED(Mix, enum.Enum):
    A = 1, 2
    B = 3


class FnEnum(enum.Enum):
    A = enum.member(functools.partial(max))


class Meta(type):
    made = []

    def __new__(m, name, bases, ns, **kw):
        c = super().__new__(m, name, bases, ns)
        return c

    def __init__(c, name, bases, ns, **kw):
        super().__init__(name, bases, ns)
        c.tag = kw.get("tag", "none")


class WithMeta(metaclass=Meta, tag="t"):
    v = 1


class SlotMeta(type):
    def __new__(m, name, bases, ns):
        ns["__slots__"] = ("a",)
        return super().__new__(m, name, bases, ns)


class NoSlotMeta(type):
    def __new__(m, name, bases, ns):
        if "__slots__" in ns:
            raise TypeError("no __slots__ please")
        return super().__new__(m, name, bases, ns)


class ForbidSlots(metaclass=NoSlotMeta):
    a = 3


class MetaSlots(metaclass=SlotMeta):
    a: int

    def __init__(self, a=1):
        self.a = a


class ReqMeta(type):
    def __new__(m, name, bases, ns, *, key):
        return super().__new__(m, name, bases, {**ns, "key": key})

    def __init__(c, name, bases, ns, *, key):
        super().__init__(name, bases, ns)


class NeedsKey(metaclass=ReqMeta, key="k"):
    pass


class IterSlots:
    __slots__ = iter(["a", "b"])

    def __init__(self):
        self.a = 1
        self.b = 2


class StrSlot:
    __slots__ = "a"

    def __init__(self):
        self.a = 1


class DictSlots:
    __slots__ = {"a": "doc of a"}

    def __init__(self):
        self.a = 1


class PrivSlots:
    __slots__ = ("__x",)

    def __init__(self):
        self.__x = 4

    def x(self):
        return self.__x


class WSlots:
    __slots__ = ("__dict__", "__weakref__", "a")

    def __init__(self):
        self.a = 1
        self.z = 3


class Init:
    reg = []

    def __init_subclass__(cls, *, key, **kw):
        super().__init_subclass__(**kw)
        cls.key = key
        Init.reg.append(cls.__name__)


class InitSub(Init, key="k"):
    pass


class InitOpt:
    reg = []

    def __init_subclass__(cls, key="?"):
        InitOpt.reg.append(cls.__name__)
        cls.key = key


class InitOptSub(InitOpt, key="given"):
    pass


class InitSlots(Init, key="s"):
    __slots__ = ("q",)

    def __init__(self):
        self.q = 2


class AB(abc.ABC):
    @abc.abstractmethod
    def f(self): ...


class ABSub(AB):
    def f(self):
        return "f"


@AB.register
class Virt:
    pass


@runtime_checkable
class Proto(Protocol):
    def f(self) -> str: ...


class ProtoG(Protocol[T]):
    def g(self) -> T: ...


class ImplG(ProtoG[int]):
    def g(self):
        return 1


@attrs.define
class AT:
    a: int
    b: list = attrs.field(factory=list)


@attrs.frozen
class AF:
    a: int


@attrs.define(slots=False)
class AN:
    a: int


@attrs.define
class ATC:
    a: int

    @functools.cached_property
    def c(self):
        return self.a + 1


class PM(pydantic.BaseModel):
    a: int
    b: list[int] = []

    def twice(self):
        return self.a * 2


class PMSub(PM):
    c: str = "c"


class PMG(pydantic.BaseModel, Generic[T]):
    a: T


@pydantic.dataclasses.dataclass
class PD:
    a: int


class PMV(pydantic.BaseModel):
    a: int

    @pydantic.field_validator("a")
    @classmethod
    def pos(cls, v):
        assert v > 0
        return v


class Err(Exception):
    def __init__(self, code, text="x"):
        super().__init__(code, text)
        self.code = code


class Desc:
    def __set_name__(self, o, n):
        self.n = n

    def __get__(self, i, o):
        return self.n


class HasDesc:
    d = Desc()


class CP:
    def __init__(self):
        self.n = 0

    @functools.cached_property
    def c(self):
        self.n += 1
        return 42

    @functools.lru_cache(maxsize=7)
    def m(self, x):
        return x * 2

    @functools.cache
    def k(self):
        return "k"

    @functools.singledispatchmethod
    def sd(self, x):
        return "obj"

    @sd.register
    def _(self, x: int):
        return "int"

    @staticmethod
    @functools.cache
    def sm(x):
        return x + 1

    pm = functools.partialmethod(lambda self, y: y, 3)


class Outer:
    class Inner:
        def who(self):
            return type(self).__qualname__


@functools.cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@functools.cache
def cc(n):
    return n + 1


@functools.singledispatch
def sd(x):
    return "obj"


@sd.register
def _(x: int):
    return "int"


@sd.register(DC)
def _(x):
    return "DC"


@functools.wraps(fib)
def wrapped(n):
    return fib(n)


class Callable_:
    def __call__(self, x):
        return x

    @functools.total_ordering
    class TO:
        def __init__(self, v):
            self.v = v

        def __eq__(self, o):
            return self.v == o.v

        def __lt__(self, o):
            return self.v < o.v


class Cyc:
    self_ref = None

    def make(self):
        return Cyc()


Cyc.self_ref = Cyc()


class Base0:
    def __init__(self, v):
        self.v = v

    def hi(self):
        return "base"


class Sup(Base0):
    def __init__(self, v):
        super().__init__(v)

    def hi(self):
        return super().hi() + "sub"


class GList(list, Generic[T]):
    pass


class MyDict(dict):
    extra = 1


class MyInt(int):
    pass


NTy = NewType("NTy", int)


class Ann:
    x: "Ann | None" = None


P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class VG(Generic[Unpack[Ts]]):
    def __init__(self, *a):
        self.a = a


class PG(Generic[P]):
    v = 1


CASES = {
    "dc": (lambda: DC(1), lambda v: v == DC(1)),
    "dcs": (lambda: DCS(1), lambda v: v == DCS(1)),
    "dcf": (lambda: DCF(1), lambda v: v == DCF(1) and hash(v) == hash(DCF(1))),
    "dcg": (lambda: DCG[int](1), lambda v: v == DCG(1)),
    "dcgs": (lambda: DCGS(1), lambda v: v == DCGS(1)),
    "dck": (lambda: DCK(a=1), lambda v: v == DCK(a=1) and v < DCK(a=2)),
    "dcrep": (
        lambda: DCS(1),
        lambda v: dataclasses.replace(v, a=2).a == 2 and dataclasses.asdict(v) == {"a": 1, "b": []},
    ),
    "nt": (lambda: NT(), lambda v: v == (1,) and v.twice() == 2 and v._replace(a=3).a == 3),
    "ntg": (lambda: NTG(2), lambda v: v.a == 2),
    "nt2": (lambda: nt(1, 2), lambda v: v.b == 2),
    "subnt": (lambda: SubNT(1, 2), lambda v: v.s() == 3 and not hasattr(v, "__dict__")),
    "td": (
        lambda: TD,
        lambda v: v(a=1) == {"a": 1} and is_typeddict(v) and v.__required_keys__ == {"a"},
    ),
    "td2": (lambda: TD2, lambda v: v.__optional_keys__ == {"b", "c"}),
    "ms": (
        lambda: MS(),
        lambda v: v == MS() and v.twice() == 2 and msgspec.json.encode(v) == b'{"a":1}',
    ),
    "msf": (
        lambda: MSF(),
        lambda v: (
            v == MSF()
            and hash(v) == hash(MSF())
            and msgspec.json.encode(v) == msgspec.json.encode(MSF())
        ),
    ),
    "mssub": (lambda: MSSub(), lambda v: v.b == 2 and v.a == 1),
    "msg": (lambda: MSG(3), lambda v: v.a == 3),
    "mstag": (
        lambda: MSTag(),
        lambda v: (
            msgspec.json.decode(b'{"kind":"x","myA":4}', type=type(v)).my_a == 4
            and msgspec.json.encode(v) == b'{"kind":"x"}'
        ),
    ),
    "e": (lambda: E.A, lambda v: v is E.A and v.hi() == "A" and E(2) is E.B),
    "ie": (lambda: IE.A, lambda v: v is IE.A and v + 1 == 2),
    "se": (lambda: SE.B, lambda v: v is SE.B and v == "b"),
    "f": (lambda: F.A | F.B, lambda v: v == F.AB),
    "if": (lambda: IF.A | IF.B, lambda v: v == 3 and IF.A in v),
    "planet": (lambda: Planet.EARTH, lambda v: v.mass == 5.9 and v is Planet.EARTH),
    "newe": (lambda: NewE.B, lambda v: v.label == "zwei" and NewE(1) is NewE.A),
    "alias": (
        lambda: Alias.ALSO,
        lambda v: (
            v is Alias.A and Alias.ALSO is Alias.A and list(Alias.__members__) == ["A", "ALSO"]
        ),
    ),
    "ed": (lambda: ED.A, lambda v: v.x == 1 and v.y == 2 and v is ED.A and ED.B.y == 5),
    "fne": (lambda: FnEnum.A, lambda v: v.value(1, 2) == 2),
    "meta": (lambda: WithMeta(), lambda v: type(v).tag == "t" and type(type(v)).__name__ == "Meta"),
    "forbid": (lambda: ForbidSlots(), lambda v: v.a == 3),
    "metaslots": (lambda: MetaSlots(), lambda v: v.a == 1 and not hasattr(v, "__dict__")),
    "needskey": (lambda: NeedsKey(), lambda v: v.key == "k"),
    "iterslots": (
        lambda: IterSlots(),
        lambda v: (v.a, v.b) == (1, 2) and not hasattr(v, "__dict__"),
    ),
    "strslot": (lambda: StrSlot(), lambda v: v.a == 1),
    "dictslots": (lambda: DictSlots(), lambda v: v.a == 1),
    "privslots": (lambda: PrivSlots(), lambda v: v.x() == 4),
    "wslots": (lambda: WSlots(), lambda v: v.z == 3),
    "initsub": (lambda: InitSub(), lambda v: v.key == "k" and Init.reg == ["InitSub", "InitSlots"]),
    "initopt": (lambda: InitOptSub(), lambda v: v.key == "given" and InitOpt.reg == ["InitOptSub"]),
    "initslots": (lambda: InitSlots(), lambda v: v.q == 2 and v.key == "s"),
    "ab": (lambda: ABSub(), lambda v: v.f() == "f" and isinstance(v, AB) and issubclass(Virt, AB)),
    "proto": (lambda: ABSub(), lambda v: isinstance(v, Proto) and not isinstance(1, Proto)),
    "implg": (lambda: ImplG(), lambda v: v.g() == 1),
    "at": (
        lambda: AT(1),
        lambda v: (
            v == AT(1) and attrs.asdict(v) == {"a": 1, "b": []} and attrs.evolve(v, a=3).a == 3
        ),
    ),
    "af": (lambda: AF(1), lambda v: v == AF(1) and hash(v) == hash(AF(1))),
    "an": (lambda: AN(1), lambda v: v == AN(1)),
    "atc": (lambda: ATC(1), lambda v: v.c == 2),
    "pm": (
        lambda: PM(a=1),
        lambda v: (
            v == PM(a=1)
            and v.twice() == 2
            and PM.model_validate({"a": "3"}).a == 3
            and v.model_dump_json() == '{"a":1,"b":[]}'
        ),
    ),
    "pmsub": (lambda: PMSub(a=1), lambda v: v.c == "c"),
    "pmg": (lambda: PMG[int](a=1), lambda v: v.a == 1 and isinstance(v, PMG)),
    "pd": (lambda: PD(a=1), lambda v: v.a == 1 and PD(a="2").a == 2),
    "pmv": (lambda: PMV(a=1), lambda v: v.a == 1),
    "err": (lambda: Err(3), lambda v: v.code == 3),
    "desc": (lambda: HasDesc(), lambda v: v.d == "d"),
    "cp": (
        lambda: CP(),
        lambda v: (
            (v.c, v.c, v.n, v.m(3), v.k(), v.sd(1), v.sd("x"), v.sm(1), v.pm())
            == (42, 42, 1, 6, "k", "int", "obj", 2, 3)
            and type(v).m.cache_parameters()["maxsize"] == 7
        ),
    ),
    "inner": (lambda: Outer.Inner(), lambda v: v.who() == "Outer.Inner"),
    "fib": (lambda: fib, lambda v: v(20) == 6765 and v.cache_info().currsize == 21),
    "cc": (lambda: cc, lambda v: v(1) == 2),
    "sd": (lambda: sd, lambda v: (v(1), v("x"), v(DC(1))) == ("int", "obj", "DC")),
    "wrapped": (lambda: wrapped, lambda v: v(10) == 55),
    "to": (lambda: Callable_.TO(1), lambda v: v >= Callable_.TO(0)),
    "cyc": (lambda: Cyc(), lambda v: type(v.self_ref) is type(v) and type(v.make()) is type(v)),
    "sup": (lambda: Sup(1), lambda v: v.hi() == "basesub"),
    "glist": (lambda: GList([1]), lambda v: v == [1]),
    "mydict": (lambda: MyDict(a=1), lambda v: v.extra == 1),
    "myint": (lambda: MyInt(3), lambda v: v == 3),
    "newtype": (lambda: NTy, lambda v: v(3) == 3),
    "ann": (lambda: Ann(), lambda v: get_type_hints(Ann)),
    "vg": (lambda: VG(1, 2), lambda v: v.a == (1, 2)),
    "pg": (lambda: PG(), lambda v: v.v == 1),
    "meth": (lambda: Sup(1).hi, lambda v: v() == "basesub"),
    "cmeth": (lambda: E.A.hi, lambda v: v() == "A"),
    "partial": (lambda: functools.partial(cc, 1), lambda v: v() == 2),
    "gen": (lambda: DCG[int], lambda v: v(a=1).a == 1),
}


def holds(value, check):
    return bool(check(value))


def same(value):
    return value


def is_of_class(value, kind):
    return (
        isinstance(value, kind) or "[" in kind.__name__
    )  # PMG[int] is made anew wherever it stands


def problems(pool, make, check):
    """Say what does not hold of a value there, of one that comes from there, and of both ways."""
    found = []
    try:
        value = make()
    except Exception as error:
        return [f"it cannot be made: {error}"]
    for way, get in {
        "here": lambda: check(value),
        "there": lambda: pool.submit(holds, value, check).result(timeout=30),
        "from there": lambda: check(pool.submit(make).result(timeout=30)),
        "there and back": lambda: check(pool.submit(same, value).result(timeout=30)),
        "of the same class": lambda: is_of_class(pool.submit(make).result(timeout=30), type(value)),
        "here afterwards": lambda: check(value),
    }.items():
        try:
            if not get():
                found.append(f"{way}: it does not hold")
        except Exception as error:
            found.append(f"{way}: {type(error).__name__}: {error}")
    return found


if __name__ == "__main__":
    with Pool(1) as pool:
        print(json.dumps({name: problems(pool, *case) for name, case in CASES.items()}))
