import json, torch
from tests.rl.test_loop import *
def test_probe(pair, task):
    for rn in (0,1):
        it = trainer(ModelPair(pair.target, pair.target, pair.tokenizer), task)
        it.round = rn
        seen = torch.randn(4, len(SCALAR_NAMES)), torch.ones(4), torch.zeros(4), torch.ones(4).bool()
        it.replay = [seen] * rn
        before={k:v.clone() for k,v in it.policy.state_dict().items()}
        try:
            m=it.play_round(); print(rn, json.dumps(m, allow_nan=False), len(it.replay))
        except Exception as e: print(rn, type(e), e)
        print([k for k,v in it.policy.state_dict().items() if not torch.equal(v,before[k])])
