"""Assignment with capacities, as an auction in which all tasks bid at once: torch on either device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

UNIT = 1 << 29  # the spread of all utilities; with it bids stay below 2^31
TOP = 1 << 31
NEVER = -(1 << 40)  # worth of an empty place: below whatever a price makes of a real one
LOW_WORD = (1 << 32) - 1

# Bids exceed what is needed to win by a step. It starts at 1 % of what separates a task's first choice from its last,
# and doubles up to 2 % of all utilities' spread, so that few tasks do not outbid each other for ever. Of 63 instances
# of 64 to 1,500 tasks, most with just enough room or less, none was over 0.38 % off the optimum or took over 136
# rounds.
FIRST_STEP = 0.01
LEAST_STEP = UNIT >> 10
MOST_STEP = UNIT // 50
DOUBLE_ROUNDS = 16
MOST_ROUNDS = 512

CUDA_ROUNDS = 8  # between two looks whether all is done: each waits for the device


class Auction:
    """Tasks bid for the agents on their shortlists; an agent of capacity c keeps its c highest bidders.

    What is sought is the greatest sum of utilities, where a task that gets no agent counts as far below the lowest
    utility as that is below the highest. An agent's price is the lowest bid it keeps, or 0 while it has room. A task
    bids so much that what it wins is worth to it what its second choice is, less a step; so the sum is within the
    tasks' steps of the greatest. In every round all tasks bid, also those that are kept, for what keeps them: as prices
    elsewhere rise, so does what they would pay, and those who cannot win learn it at once. (Where only those that have
    nothing bid, some of the same instances took over 1,000 rounds.) Money is in whole numbers, and equal bids go to the
    task that comes first, so devices agree.

    Args:
        agents: (m, k) int64, the shortlist of each of m tasks, by number of the agent.
        utilities: (m, k) float32 of them; -inf at places that are empty.
        capacity: (n,) int64, how many tasks each agent can take; at least 1 of those on a shortlist.

    Source: Bertsekas and Castañón 1989, The auction algorithm for the transportation problem, with all bids of a round
    at once. Their ε falls from round to round; here it rises, since with more room than tasks prices kept from a
    coarser auction are wrong: with ε = 0.1, 0.02, 0.004 the sums came out up to 38 % short.
    """

    def __init__(self, agents: Tensor, utilities: Tensor, capacity: Tensor) -> None:
        import torch

        tasks, places = agents.shape
        self._places = places
        nobody = len(capacity)  # has room for all, for nothing: who bids for it goes without
        listed = utilities.isfinite()
        worth = torch.where(listed, _worth(utilities, listed), NEVER)
        self._worth = torch.cat([worth, worth.new_full((tasks, 1), -UNIT)], 1)
        self._agents = torch.cat([torch.where(listed, agents, nobody), agents.new_full((tasks, 1), nobody)], 1)
        self._room = torch.cat([capacity, capacity.new_tensor([tasks + 1])])
        self._price = torch.zeros(nobody + 2, dtype=torch.int64, device=agents.device)
        self._no_price = nobody + 1  # the place of what is not to be kept
        self._step = _first_step(worth, listed)
        self._numbers = torch.arange(tasks, device=agents.device)
        self._free = torch.ones(tasks, dtype=torch.bool, device=agents.device)
        self._place = torch.full_like(self._numbers, places)

    def run(self, checkpoint: Callable[[], object]) -> Tensor:
        """Let the tasks bid until each has an agent or none it can pay for, and after `MOST_ROUNDS` take what is left.

        Args:
            checkpoint: called between rounds; what it raises ends the auction.

        Returns:
            (m,) int64, the place on its shortlist of the agent that a task gets, -1 if all there are full.
        """
        import torch

        rounds = 0
        while rounds < MOST_ROUNDS and self._goes_on(rounds):
            checkpoint()
            self._bid()
            rounds += 1
            if rounds % DOUBLE_ROUNDS == 0:
                self._step = (2 * self._step).clamp(max=MOST_STEP)
        if rounds == MOST_ROUNDS:
            self._fill()
        return torch.where(self._place < self._places, self._place, -1)

    def _goes_on(self, rounds: int) -> bool:
        if self._free.is_cuda and rounds % CUDA_ROUNDS:
            return True  # perhaps: where none is free, a round only raises prices
        return bool(self._free.any())

    def _bid(self) -> None:
        """One round: tasks that have nothing bid for what is worth most to them at today's prices."""
        import torch

        net = self._worth - self._price[self._agents]
        best = torch.where(self._free, net.max(1).indices, self._place)[:, None]  # the first of equals
        second = net.scatter(1, best, NEVER).amax(1)
        offer = self._worth.gather(1, best).squeeze(1) - second + self._step
        self._settle(best, offer.clamp(max=TOP))

    def _fill(self) -> None:
        """Give tasks that have nothing the best of their agents with room left; nobody is outbid any more."""
        import torch

        for _ in range(self._places + 1):  # in each round a task gets its choice, or that is full from then on
            full = torch.where(self._price > 0, -NEVER, 0)
            choice = (self._worth - full[self._agents]).max(1).indices
            best = torch.where(self._free, choice, self._place)[:, None]
            self._settle(best, torch.where(self._free, 1, 2))

    def _settle(self, best: Tensor, offer: Tensor) -> None:
        """Let each agent keep its highest bidders, and set its price once it is full.

        Args:
            best: (m, 1) int64, place on its shortlist that each task bids for.
            offer: (m,) int64, what each bids, 1 to `TOP`.
        """
        import torch

        key = (self._agents.gather(1, best).squeeze(1) << 32) + (TOP - offer)
        key, order = key.sort(stable=True)  # agent by agent, from the highest bid to the lowest
        agent = key >> 32
        rank = self._numbers - torch.searchsorted(agent, agent)
        room = self._room[agent]
        last = torch.where(rank == room - 1, agent, self._no_price)
        self._price.scatter_(0, last, TOP - (key & LOW_WORD))
        self._free = torch.empty_like(self._free).scatter_(0, order, rank >= room)
        self._place = torch.where(self._free, self._places, best.squeeze(1))


def _worth(utilities: Tensor, listed: Tensor) -> Tensor:
    """Utilities as whole numbers, 0 for the lowest of all and `UNIT` for the highest."""
    import torch

    wide = utilities.double()
    low = torch.where(listed, wide, torch.inf).min()
    span = torch.where(listed, wide, -torch.inf).max() - low
    scale = torch.where(span > 0, UNIT / span, 0.0)
    return torch.where(listed, (wide - low) * scale, 0.0).round().long()


def _first_step(worth: Tensor, listed: Tensor) -> Tensor:
    """A share of what separates the first from the last place of a shortlist, on average."""
    import torch

    highest = torch.where(listed, worth, 0).amax(1)
    lowest = torch.where(listed, worth, UNIT).amin(1)
    spread = (highest - lowest).clamp(min=0).double().mean()
    return (FIRST_STEP * spread).long().clamp(min=LEAST_STEP)
