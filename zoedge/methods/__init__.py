"""The methods of the literature, one method a file: everything here needs only the log of a run, never its model.

A zeroth-order step measures losses at points around theta and moves along the directions that it probed:

    theta <- theta - lr * update(g, z)        z: noise        g: estimator, from losses alone        update: rule

An algorithm is a choice of one word each, and any direction goes with any estimator and rule that does not refuse it:

    algorithm            noise                estimator                    rule
    -------------------  -------------------  ---------------------------  ---------------------------------
    MeZO                 normal               two_sided                    sgd           arXiv 2305.17333
    MeZO, App. B.5       normal               residual                     sgd           one forward a step
    ZO-SGD-MMT, -Sign    normal               two_sided                    momentum, sign        2402.11592
    ZO-SGD-Cons          normal               conservative                 sgd                   2402.11592
    ZO-Adam              normal               two_sided                    adam                  2402.11592
    ZO-AdaMU             normal               two_sided                    adamu                 2312.15184
    HiZOO                normal               curved                       hizoo                 2402.15173
    FZOO                 rademacher           fzoo, 8 queries              sgd                   2506.09034
    LOZO                 low_rank             two_sided                    sgd                   2410.07698
    sparse, block-wise   sparse, block        two_sided                    sgd                   2402.11592
    QZO                  normal               two_sided, clip: 100         sgd, space: scales    2505.13430
    S2P, AS2P            normal               s2p, as2p                    sgd                   2402.01621
    stochastic 3 points  normal               stp                          sgd, schedule: cosine
    DAP                  sphere               dap                          sgd                   2510.19975
    forward gradient     normal               forward                      sgd                   2202.08587

What is trained is a fourth choice, the space: LoRA matrices, a soft prompt, a prefix, the scales of a quantised base, all
weights, or several of these at once.

A recipe's word is a file's name: `noise: normal` is `noise/normal.py`, and its class is `Normal`. A module here may import
`zoedge.core`, `zoedge.errors` and its own private siblings, whose names begin with an underscore.
"""
