"""A real notebook kernel runs cells, by jupyter_client.

needs: module ipykernel, module jupyter_client
"""

from jupyter_client.manager import start_new_kernel

CELLS = [
    "import torch\nfrom torch import nn\ntorch.manual_seed(0); torch.set_num_threads(1)",
    "net = nn.Linear(8, 4); opt = torch.optim.SGD(net.parameters(), 0.1); x = torch.randn(16, 8)",
    "for _ in range(20):\n opt.zero_grad(); l = net(x).pow(2).mean(); l.backward(); opt.step()\n"
    " print(float(l).hex())",
    "net(torch.zeros(1, 3))",
    "print('goes on')",
]
manager, client = start_new_kernel(kernel_name="python3")
for cell in CELLS:
    reply = client.execute_interactive(cell, timeout=60)
    print(reply["content"]["status"])
client.stop_channels()
manager.shutdown_kernel()
