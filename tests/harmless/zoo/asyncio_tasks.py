"""Training in an asyncio task in debug mode, which logs what takes long or isn't awaited."""

import asyncio
import warnings

import torch
from training import batches, show, small_model, train_step

warnings.simplefilter("error")


async def training():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches():
        show("loss", train_step(model, optimizer, batch))
        await asyncio.sleep(0)


async def ticking(ticks):
    for tick in range(30):
        ticks.append(tick)
        await asyncio.sleep(0)


async def main():
    ticks = []
    asyncio.get_running_loop().slow_callback_duration = 60
    told = await asyncio.gather(training(), ticking(ticks), asyncio.to_thread(sum, [1, 2]))
    show(told)
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 6")
    show(len(ticks), await process.wait(), len(asyncio.all_tasks()))


asyncio.run(main(), debug=True)
