"""A reading worklist as a discrete-event simulation, and the formulas that check it.

Exams arrive, wait and are read. A mark of a network may put an exam ahead of others;
whom that helps, and who pays, is what the simulation measures. Time is in minutes since
midnight before the first day.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import simpy
from numpy.typing import ArrayLike, NDArray

from medimg_utils.errors import InputError

HOUR, DAY = 60.0, 1440.0


@dataclass(frozen=True)
class Department:
    """Who comes, who reads.

    Attributes:
        arrivals: exams an hour, for each hour of the day; arrivals are Poisson.
        readers: radiologists on duty in each hour of the day.
        minutes: mean reading time; single times are exponential around it.
        prevalence: share of exams with the urgent finding.
    """

    arrivals: tuple[float, ...]
    readers: tuple[int, ...]
    minutes: float
    prevalence: float

    def __post_init__(self) -> None:
        if len(self.arrivals) != 24 or len(self.readers) != 24:
            raise InputError(
                f"{len(self.arrivals)} rates of arrival and {len(self.readers)} numbers "
                "of readers were given, but the day has 24 hours."
            )
        if min(self.arrivals) < 0 or min(self.readers) < 0 or self.minutes <= 0:
            raise InputError("rates, readers and minutes must not be negative.")
        if not 0 < self.prevalence < 1:
            raise InputError(
                f"prevalence is {self.prevalence}, expected more than 0 and less than 1."
            )
        if self.load >= 1:
            raise InputError(
                f"{sum(self.arrivals) * self.minutes / HOUR:.1f} hours of reading come in "
                f"each day, but only {sum(self.readers)} are worked: the list would grow "
                "for ever. Add readers, or send fewer exams."
            )

    @property
    def load(self) -> float:
        """Share of the readers' time that reading takes, over a day."""
        hours = sum(self.arrivals) * self.minutes / HOUR
        return hours / sum(self.readers) if sum(self.readers) else float("inf")


def steady(
    rate: float, readers: int, minutes: float, prevalence: float = 0.05
) -> Department:
    """A department in which every hour is alike, as the formulas below assume."""
    return Department((rate,) * 24, (readers,) * 24, minutes, prevalence)


def arrivals(
    department: Department, days: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Times of a Poisson process whose rate changes with the hour of the day.

    The number of exams of an hour is Poisson; within the hour each minute is as likely
    as any other.

    Returns:
        (N,) sorted minutes.
    """
    counts = random.poisson(np.tile(department.arrivals, days))
    hours = np.repeat(np.arange(24 * days), counts)
    return np.sort((hours + random.random(hours.size)) * HOUR)


def draw_exams(
    department: Department,
    days: int,
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float,
    random: np.random.Generator,
) -> pd.DataFrame:
    """A stream of exams, each with the score of an exam that a network has answered.

    Whether an arriving exam is ill is drawn at the department's prevalence; then one of
    the answered exams of its class is drawn.

    Args:
        department: who comes.
        days: how long.
        scores: (M,) answers of a network.
        labels: (M,) 0 or 1, at least one of each.
        threshold: scores of this and above are marked.
        random: where chance comes from.

    Returns:
        One row an exam, in the order of arrival: `arrival` (minutes), `minutes` it takes
        to read, `ill`, `marked`, `case` (which of the M), `hard` (evenly in [0, 1): a
        reader sees the finding if his sensitivity lies above; see `Habits`).
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    positives, negatives = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    if not positives.size or not negatives.size:
        raise InputError("labels are all alike, but both classes are needed.")
    times = arrivals(department, days, random)
    ill = random.random(times.size) < department.prevalence
    case = np.where(
        ill, random.choice(positives, times.size), random.choice(negatives, times.size)
    )
    return pd.DataFrame(
        {
            "arrival": times,
            "minutes": random.exponential(department.minutes, times.size),
            "ill": ill,
            "marked": values[case] >= threshold,
            "case": case,
            "hard": random.random(times.size),
        }
    )


@dataclass(frozen=True)
class Habits:
    """How well a radiologist sees, and what the marks of a network do to that.

    Attributes:
        alone: sensitivity for the urgent finding where there is no network.
        pointed: sensitivity where a mark points at it.
        trust: sensitivity that the silence of the network costs (automation bias).
        haste: share of the reading time that is saved where the network is silent.
    """

    alone: float
    pointed: float
    trust: float = 0.0
    haste: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alone", "pointed"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"{name} is {getattr(self, name)}, but a sensitivity lies between 0 "
                    "and 1."
                )
        if not 0 <= self.trust <= self.alone or not 0 <= self.haste < 1:
            raise InputError(
                f"trust is {self.trust} and haste {self.haste}; expected 0 to alone "
                f"({self.alone}), and 0 to less than 1."
            )

    def seen(self, exams: pd.DataFrame) -> pd.Series:
        """(N,) bool: is the exam ill, and does the radiologist see it?

        The same exam is as hard in every scenario, so who is found by a reader is found
        by every better one.
        """
        sensitivity = np.where(exams["marked"], self.pointed, self.alone - self.trust)
        return exams["ill"] & (exams["hard"] < sensitivity)

    def hurried(self, exams: pd.DataFrame) -> pd.DataFrame:
        """The exams with the reading times that these habits bring."""
        saved = np.where(exams["marked"], 0.0, self.haste)
        return exams.assign(minutes=exams["minutes"] * (1 - saved))


def work(
    exams: pd.DataFrame, readers: tuple[int, ...], lead: float, habits: Habits
) -> pd.DataFrame:
    """Let radiologists with habits work through the list: `read`, and what they see.

    Args:
        exams: as `draw_exams` gives them; without a network nothing is marked, and trust
            and haste should be 0.
        readers: on duty in each hour of the day (24 numbers).
        lead: minutes by which a mark moves an exam ahead.
        habits: of all of them.

    Returns:
        One row an exam: `wait` until somebody opens it, `told` when the reading ends
        (minutes from arrival), `seen` (ill and noticed), `overlooked` (ill and not).
    """
    real = habits.hurried(exams)
    wait = read(real, readers, lead)
    seen = habits.seen(exams)
    return pd.DataFrame(
        {
            "wait": wait,
            "told": wait + real["minutes"],
            "seen": seen,
            "overlooked": exams["ill"] & ~seen,
        }
    )


def _shifts(readers: tuple[int, ...], number: int) -> Iterator[tuple[float, float]]:
    """Begin and end of the duties of reader `number`, for ever; in minutes."""
    on = [count > number for count in readers]
    if all(on):
        yield 0.0, float("inf")
        return
    hour = 0
    while any(on):
        while not on[hour % 24]:
            hour += 1
        begin = hour
        while on[hour % 24]:
            hour += 1
        yield begin * HOUR, hour * HOUR


def read(exams: pd.DataFrame, readers: tuple[int, ...], lead: float) -> pd.Series:
    """Let radiologists work through the list, and return how long each exam waits.

    The next exam is the one with the earliest arrival; a marked one counts as if it had
    come `lead` minutes earlier. So 0 is first come, first served, infinity puts every
    marked exam before every other, and what lies between is a compromise. Who reads is
    not interrupted, and finishes the last exam of a duty.

    Args:
        exams: as `draw_exams` gives them.
        readers: on duty in each hour of the day (24 numbers).
        lead: minutes by which a mark moves an exam ahead.

    Returns:
        (N,) minutes from arrival to the moment when somebody opens the exam.
    """
    come = exams["arrival"].to_numpy()
    length = exams["minutes"].to_numpy()
    if come.size == 0:
        return pd.Series(dtype=float, index=exams.index)
    if max(readers) == 0:
        raise InputError("nobody is on duty in any hour, so no exam would be read.")
    span = float(come[-1] - come[0]) + 1  # ahead of everybody, and still in order
    place = come - np.where(exams["marked"], min(lead, span), 0.0)
    opened = np.full(come.size, np.nan)

    world = simpy.Environment()
    worklist = simpy.PriorityStore(world)
    done = world.event()
    left = come.size

    def scanner() -> Generator[simpy.Event, Any, None]:
        for number, time in enumerate(come):
            yield world.timeout(time - world.now)
            worklist.put(simpy.PriorityItem(place[number], number))

    def radiologist(number: int) -> Generator[simpy.Event, Any, None]:
        nonlocal left
        for begin, end in _shifts(readers, number):
            if end <= world.now:
                continue
            yield world.timeout(max(0.0, begin - world.now))
            over = world.timeout(end - world.now) if np.isfinite(end) else world.event()
            while world.now < end:
                following = worklist.get()
                yield following | over
                if not following.triggered:
                    following.cancel()
                    break
                taken: Any = following.value
                exam = taken.item
                opened[exam] = world.now
                yield world.timeout(length[exam])
                left -= 1
                if left == 0:
                    done.succeed()

    world.process(scanner())
    for number in range(max(readers)):
        world.process(radiologist(number))
    world.run(done)
    return pd.Series(opened - come, index=exams.index, name="wait")


def queue_length(
    exams: pd.DataFrame, wait: ArrayLike, times: ArrayLike
) -> NDArray[Any]:
    """How many exams lie unopened on the list at each of `times`."""
    come = np.sort(exams["arrival"].to_numpy())
    opened = np.sort(exams["arrival"].to_numpy() + np.asarray(wait))
    at = np.asarray(times, dtype=float)
    return np.searchsorted(come, at, "right") - np.searchsorted(opened, at, "right")


# ---------------------------------------------------------------------- queueing theory


def erlang_c(rate: float, minutes: float, readers: int) -> float:
    r"""Probability that all readers are busy when an exam arrives (M/M/c).

    By the recursion of Erlang's blocking probability, $B_0 = 1$,
    $B_k = a B_{k-1} / (k + a B_{k-1})$ with the offered load $a$, and
    $C = B_c / (1 - \rho (1 - B_c))$.

    Args:
        rate: exams an hour.
        minutes: mean reading time.
        readers: how many.

    >>> round(erlang_c(6, 5, 1), 12)  # one reader is busy half of the time
    0.5
    """
    offered = rate * minutes / HOUR
    if readers < 1 or offered >= readers:
        raise InputError(
            f"{rate:g} exams an hour of {minutes:g} minutes keep {offered:.2f} readers "
            f"busy, but there are {readers}: the list would grow for ever."
        )
    blocked = 1.0
    for k in range(1, readers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    busy = offered / readers
    return blocked / (1 - busy * (1 - blocked))


def mean_wait(rate: float, minutes: float, readers: int) -> float:
    """Mean wait in minutes, first come, first served, in a steady M/M/c list.

    >>> round(mean_wait(6, 5, 1), 12)
    5.0
    """
    busy = rate * minutes / HOUR / readers
    return erlang_c(rate, minutes, readers) * minutes / readers / (1 - busy)


def priority_waits(
    rate: float, minutes: float, readers: int, marked: float
) -> tuple[float, float]:
    r"""Mean waits of marked and of other exams, if every marked one goes first.

    Nobody is interrupted, and both kinds take equally long to read (Cobham 1954): with
    $W_0$ the mean time until a reader becomes free and $\rho_1$ the load of the marked,

    $$W_1 = \frac{W_0}{1 - \rho_1}, \qquad
    W_2 = \frac{W_0}{(1 - \rho_1)(1 - \rho)} .$$

    The mean over all exams is that of first come, first served: what the marked gain,
    the others lose.

    Args:
        rate: exams an hour.
        minutes: mean reading time.
        readers: how many.
        marked: share of the exams that are marked.

    >>> [round(wait, 6) for wait in priority_waits(6, 5, 1, 0.5)]
    [3.333333, 6.666667]
    """
    if not 0 <= marked <= 1:
        raise InputError(f"marked is {marked}, but a share lies between 0 and 1.")
    busy = rate * minutes / HOUR / readers
    free = erlang_c(rate, minutes, readers) * minutes / readers
    first = free / (1 - busy * marked)
    return first, first / (1 - busy)
