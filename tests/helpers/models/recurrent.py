"""Recurrent networks as people write them: LSTM, GRU, both directions, cells in loops, attention over states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inputs import VOCABULARY, Made, series, tokens

__all__ = ["RECURRENT"]


class LSTMClassifier(nn.Module):
    """The state of the last step, of both directions if there are two."""

    def __init__(self, layers: int = 1, both: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, layers, batch_first=True, bidirectional=both)
        self.fc, self.layers, self.both = nn.Linear(12 if both else 6, 4), layers, both

    def forward(self, x: Tensor) -> Tensor:
        directions = 2 if self.both else 1
        h0 = torch.zeros(self.layers * directions, x.size(0), 6).to(x.device)
        c0 = torch.zeros(self.layers * directions, x.size(0), 6).to(x.device)
        out, (hn, _) = self.lstm(x, (h0, c0))
        return self.fc(torch.cat((hn[-2], hn[-1]), dim=1) if self.both else out[:, -1, :])


class GRUTagger(nn.Module):
    """Words in, a class for each of them out; steps first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru, self.out = (
            nn.Embedding(VOCABULARY, 6),
            nn.GRU(6, 8, bidirectional=True),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embedding(x).transpose(0, 1)
        output, _ = self.gru(embedded)
        return F.log_softmax(self.out(output).transpose(0, 1), dim=-1)


class Cells(nn.Module):
    """LSTM cells in a loop, as in torch's example of time sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm1, self.lstm2, self.linear = nn.LSTMCell(4, 6), nn.LSTMCell(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        h_t = torch.zeros(x.size(0), 6, dtype=x.dtype)
        c_t = torch.zeros(x.size(0), 6, dtype=x.dtype)
        h_t2 = torch.zeros(x.size(0), 6, dtype=x.dtype)
        c_t2 = torch.zeros(x.size(0), 6, dtype=x.dtype)
        for input_t in x.split(1, dim=1):
            h_t, c_t = self.lstm1(input_t.squeeze(1), (h_t, c_t))
            h_t2, c_t2 = self.lstm2(h_t, (h_t2, c_t2))
            outputs += [self.linear(h_t2)]
        return torch.stack(outputs, dim=1)


class WrittenOutLSTM(nn.Module):
    """Gates from one product, cut into four."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U, self.bias = (
            nn.Parameter(torch.randn(4, 24) * 0.4),
            nn.Parameter(torch.randn(6, 24) * 0.4),
            nn.Parameter(torch.zeros(24)),
        )
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.size()
        h, c = torch.zeros(rows, 6).to(x.device), torch.zeros(rows, 6).to(x.device)
        for t in range(length):
            gates = x[:, t, :] @ self.W + h @ self.U + self.bias
            i, f, g, o = (
                torch.sigmoid(gates[:, :6]),
                torch.sigmoid(gates[:, 6:12]),
                torch.tanh(gates[:, 12:18]),
                torch.sigmoid(gates[:, 18:]),
            )
            c = f * c + i * g
            h = o * torch.tanh(c)
        return self.fc(h)


class Seq2Seq(nn.Module):
    """A GRU that reads, and one that writes with Bahdanau's attention, each time from its own last answer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.encoder = nn.Embedding(VOCABULARY, 6), nn.GRU(6, 6, batch_first=True)
        self.Wa, self.Ua, self.Va = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.cell, self.out = nn.GRU(12, 6, batch_first=True), nn.Linear(6, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        states, hidden = self.encoder(self.embedding(x))
        word = torch.empty(x.size(0), 1, dtype=torch.long, device=x.device).fill_(0)
        found = []
        for _ in range(2):
            query = hidden.permute(1, 0, 2)
            weights = F.softmax(self.Va(torch.tanh(self.Wa(query) + self.Ua(states))).squeeze(2).unsqueeze(1), dim=-1)
            context = torch.bmm(weights, states)
            output, hidden = self.cell(torch.cat((self.embedding(word), context), dim=2), hidden)
            output = self.out(output)
            found.append(output)
            word = output.topk(1)[1].squeeze(-1).detach()
        return F.log_softmax(torch.cat(found, dim=1), dim=-1)


RECURRENT = {
    "LSTM": Made(lambda: LSTMClassifier(2), series(5, 4)),
    "LSTM, both directions": Made(lambda: LSTMClassifier(both=True), series(5, 4)),
    "GRU tagger": Made(GRUTagger, tokens(5)),
    "LSTM cells in a loop": Made(Cells, series(4, 4)),
    "LSTM written out": Made(WrittenOutLSTM, series(4, 4)),
    "GRU with attention": Made(Seq2Seq, tokens(5)),
}
