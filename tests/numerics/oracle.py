"""The rules once more, in plain Python floats and loops: an oracle that shares no code with debias, without torch.

A matrix is a list of rows. Each function returns `(update, magnitude)`: magnitude is, element by element, the sum of
the absolute values of everything that was added up, so `error <= tolerance * magnitude` is the honest bound for a
calculation that adds in another order or a narrower type.

Conventions, from the method's description: the term of a gradient whose norm is zero is dropped; a shared direction
whose squared length is at most CANCELLED of its two parts is rounding, not a direction, and nothing is projected on it;
a one-row tensor under "published" takes the tensor form.
"""

import inspect
import math

Matrix = list[list[float]]
CANCELLED = 1e-12


def dot(u: list[float], v: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(u, v, strict=True))


def absolute_dot(u: list[float], v: list[float]) -> float:
    return math.fsum(abs(a * b) for a, b in zip(u, v, strict=True))


def flat(matrix: Matrix) -> list[float]:
    return [value for row in matrix for value in row]


def norm(matrix: Matrix) -> float:
    return math.sqrt(dot(flat(matrix), flat(matrix)))


def over(a: float, b: float) -> float:
    return a / b if b != 0 else 0.0


def linear(main: Matrix, bias: Matrix, x: float, y: float, y_size: float | None = None) -> tuple[Matrix, Matrix]:
    """`x main + y bias`; `y_size` bounds |y| where y itself came out of a sum that may cancel."""
    size = abs(y) if y_size is None else y_size
    update = [[x * m + y * b for m, b in zip(mr, br, strict=True)] for mr, br in zip(main, bias, strict=True)]
    magnitude = [
        [abs(x * m) + size * abs(b) for m, b in zip(mr, br, strict=True)] for mr, br in zip(main, bias, strict=True)
    ]
    return update, magnitude


def update_of(
    name: str, steps: list[list[Matrix]], rates: float | list[float], **settings: object
) -> tuple[Matrix, Matrix]:
    """Of the function of that name, in the last of these steps; what it takes is the rule's vectors, or all `steps`.

    `rates`: the learning rate of each step, or that of all.
    """
    rule = globals()[name]
    if "steps" in inspect.signature(rule).parameters:
        return rule(steps, rates if isinstance(rates, list) else [rates] * len(steps), **settings)
    return rule(*steps[-1], **settings)


def erm(main: Matrix) -> tuple[Matrix, Matrix]:
    return linear(main, main, 1.0, 0.0)


def subtract(main: Matrix, bias: Matrix, alpha: float = 1.0) -> tuple[Matrix, Matrix]:
    return linear(main, bias, 1.0, -alpha)


def norm_balance(main: Matrix, bias: Matrix) -> tuple[Matrix, Matrix]:
    rest = [[m - b for m, b in zip(mr, br, strict=True)] for mr, br in zip(main, bias, strict=True)]
    whole, of_bias, of_rest = norm(main), norm(bias), norm(rest)
    if of_bias == 0 or of_rest**2 <= CANCELLED * (whole**2 + of_bias**2):
        return linear(main, bias, 1.0, 0.0, 1.0)
    update = [
        [whole / 2 * (b / of_bias + c / of_rest) for b, c in zip(br, cr, strict=True)]
        for br, cr in zip(bias, rest, strict=True)
    ]
    # Whoever takes the rest's length from inner products loses what cancels: float64's 1e-16 times this square.
    loss = 1 + 1e-9 * ((whole + of_bias) / of_rest) ** 2
    magnitude = [
        [whole / 2 * (abs(b) / of_bias + loss * (abs(m) + abs(b)) / of_rest) for m, b in zip(mr, br, strict=True)]
        for mr, br in zip(main, bias, strict=True)
    ]
    return update, magnitude


def orthogonal(main: Matrix, bias: Matrix, alpha: float = 1.0) -> tuple[Matrix, Matrix]:
    m, b = flat(main), flat(bias)
    return linear(main, bias, 1.0, -alpha * over(dot(m, b), dot(b, b)), alpha * over(absolute_dot(m, b), dot(b, b)))


def pcgrad(main: Matrix, bias: Matrix, keep: str = "both") -> tuple[Matrix, Matrix]:
    m, b = flat(main), flat(bias)
    conflict = dot(m, b) < 0
    sizes = absolute_dot(m, b)
    # Near mb = 0 one order of summation may see a conflict where another sees none: hence the sizes.
    new_main = linear(main, bias, 1.0, -over(dot(m, b), dot(b, b)) if conflict else 0.0, over(sizes, dot(b, b)))
    if keep == "main":
        return new_main
    new_bias = linear(bias, main, 1.0, -over(dot(m, b), dot(m, m)) if conflict else 0.0, over(sizes, dot(m, m)))
    return add(new_main[0], new_bias[0]), add(new_main[1], new_bias[1])


def mgda(main: Matrix, bias: Matrix) -> tuple[Matrix, Matrix]:
    apart = [[m - b for m, b in zip(mr, br, strict=True)] for mr, br in zip(main, bias, strict=True)]
    square, lengths = dot(flat(apart), flat(apart)), norm(main) ** 2 + norm(bias) ** 2
    if square <= CANCELLED * lengths:
        return linear(main, bias, 1.0, 0.0, 1.0)
    gamma = min(1.0, max(0.0, -dot(flat(apart), flat(bias)) / square))
    update, magnitude = linear(main, bias, gamma, 1 - gamma)
    # Whoever takes |main - bias|^2 from inner products loses what cancels.
    loss = 1e-3 * lengths / square
    return update, [
        [size + loss * abs(m) for size, m in zip(*rows, strict=True)] for rows in zip(magnitude, apart, strict=True)
    ]


def cagrad(main: Matrix, bias: Matrix, c: float = 0.5, form: str = "paper") -> tuple[Matrix, Matrix]:
    """w by halving the interval in which the derivative of `<g_w, g_0> + c |g_0| |g_w|` changes its sign."""
    m, b = flat(main), flat(bias)
    apart, average = [x - y for x, y in zip(m, b, strict=True)], [(x + y) / 2 for x, y in zip(m, b, strict=True)]
    lengths = dot(m, m) + dot(b, b)
    reach = c * math.sqrt(dot(average, average)) if dot(average, average) > CANCELLED * lengths / 4 else 0.0
    slope, square, foot = dot(apart, average), dot(apart, apart), over(dot(apart, b), dot(apart, apart))
    if square <= CANCELLED * lengths:
        square = foot = 0.0
    off = [y - foot * x for x, y in zip(apart, b, strict=True)]  # from 0 to the line, at a right angle
    distance = dot(off, off)

    def derivative(w: float) -> float:
        return slope + reach * over(square * (w + foot), math.sqrt(distance + square * (w + foot) ** 2))

    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if derivative(middle) < 0 else (low, middle)
    w = (low + high) / 2
    inside = 1e-9 < w < 1 - 1e-9
    w = w if inside else round(w)
    more = over(reach, norm(linear(main, bias, w, 1 - w)[0]))
    x, y = 0.5 + more * w, 0.5 + more * (1 - w)
    # Whoever takes the line's distance from 0 from inner products loses what cancels, where that is asked for.
    loss = more * min(1e6, 1e-3 * over(lengths**2, square * distance)) if inside else 0.0
    update, magnitude = linear(main, bias, x, y)
    whole = 1 + c * c if form == "code" else 1.0
    sizes = linear(main, bias, loss, loss)[1]
    return (
        [[value / whole for value in row] for row in update],
        [[value / whole for value in row] for row in add(magnitude, sizes)],
    )


def l2_sp(main: Matrix, moved: Matrix, alpha: float = 0.01) -> tuple[Matrix, Matrix]:
    return linear(main, moved, 1.0, alpha)


def component_clip(main: Matrix, max_norm: float = 0.15) -> tuple[Matrix, Matrix]:
    return linear(main, main, min(1.0, max_norm / norm(main)) if norm(main) else 1.0, 0.0)


def gradvac(steps: list[list[Matrix]], rates: list[float], beta: float = 0.01) -> tuple[Matrix, Matrix]:
    """All steps of a tensor from its first, each (main, bias); the last one's update, by angles."""
    target, update, magnitude = 0.0, steps[0][0], steps[0][0]
    for main, bias in steps:
        m, b = norm(main), norm(bias)
        cosine = min(1.0, max(-1.0, over(dot(flat(main), flat(bias)), m * b)))
        sine, wanted = math.sqrt(max(0.0, 1 - cosine**2)), math.sqrt(max(0.0, 1 - target**2))
        if sine**2 <= CANCELLED:
            sine = 0.0
        lean = over(target * sine, wanted) - cosine if cosine < target else 0.0
        # Near a cosine of 1 or -1 a sine that comes out of sums has lost half of its digits.
        size = abs(lean) + over(abs(target) * min(1e3, over(1e-3, sine)), wanted) if cosine < target else 0.0
        noise = over(absolute_dot(flat(main), flat(bias)), m * b)  # what one order of summation may see as a conflict
        size = max(size, 1e-3 * noise)
        moved = linear(main, bias, 1.0, lean * over(m, b), size * over(m, b))
        other = linear(bias, main, 1.0, lean * over(b, m), size * over(b, m))
        update, magnitude = add(moved[0], other[0]), add(moved[1], other[1])
        target = (1 - beta) * target + beta * cosine
    return update, magnitude


def add(a: Matrix, b: Matrix) -> Matrix:
    return [[u + v for u, v in zip(ar, br, strict=True)] for ar, br in zip(a, b, strict=True)]


def shared(main: Matrix, bias: Matrix) -> tuple[Matrix, Matrix]:
    """The shared direction c, and the same with absolute values."""
    m_norm, b_norm = norm(main), norm(bias)
    c, size = [], []
    for m_row, b_row in zip(main, bias, strict=True):
        c.append([over(m, m_norm) + over(b, b_norm) for m, b in zip(m_row, b_row, strict=True)])
        size.append([abs(over(m, m_norm)) + abs(over(b, b_norm)) for m, b in zip(m_row, b_row, strict=True)])
    return c, size


def parts(main: Matrix, bias: Matrix) -> list[float]:
    """|main_r|^2/|main|^2 + |bias_r|^2/|bias|^2 of each row: what |c_r|^2 would be if the two were orthogonal."""
    m_norm, b_norm = norm(main), norm(bias)
    result = []
    for m_row, b_row in zip(main, bias, strict=True):
        m_unit, b_unit = [over(m, m_norm) for m in m_row], [over(b, b_norm) for b in b_row]
        result.append(dot(m_unit, m_unit) + dot(b_unit, b_unit))
    return result


def cancellation(main: Matrix, bias: Matrix) -> list[float]:
    """|c|^2 over its parts, for each row that is not zero and (last) for the tensor: near 0 where c cancels."""
    c, _ = shared(main, bias)
    lengths, sizes = [dot(row, row) for row in c], parts(main, bias)
    return [over(k, p) for k, p in zip([*lengths, sum(lengths)], [*sizes, sum(sizes)], strict=True) if p > 0]


def edge(main: Matrix, bias: Matrix, alpha: float = 1.0, projection: str = "published") -> tuple[Matrix, Matrix]:
    if projection == "published" and len(main) == 1:
        projection = "tensor"
    c, c_size = shared(main, bias)
    scores = [dot(b_row, c_row) for b_row, c_row in zip(bias, c, strict=True)]
    sizes = [absolute_dot(b_row, c_row) for b_row, c_row in zip(bias, c_size, strict=True)]
    lengths = [dot(c_row, c_row) for c_row in c]
    bounds = parts(main, bias)
    if projection == "tensor":
        scores = [math.fsum(scores)] * len(main)
        sizes = [math.fsum(sizes)] * len(main)
        lengths = [math.fsum(lengths)] * len(main)
        bounds = [math.fsum(bounds)] * len(main)
    if projection != "published":
        for r in range(len(main)):
            if lengths[r] <= CANCELLED * bounds[r]:
                scores[r] = sizes[r] = 0.0
            else:
                scores[r], sizes[r] = scores[r] / lengths[r], sizes[r] / lengths[r]
    update, magnitude = [], []
    for r in range(len(main)):
        rows = list(zip(main[r], bias[r], c[r], c_size[r], strict=True))
        update.append([m - alpha * (b - scores[r] * u) for m, b, u, _ in rows])
        magnitude.append([abs(m) + abs(alpha) * (abs(b) + sizes[r] * size) for m, b, _, size in rows])
    return update, magnitude


def digrap(
    steps: list[list[Matrix]], rates: list[float], mu: float = 1e-2, beta1: float = 0.9, beta2: float = 0.999
) -> tuple[Matrix, Matrix]:
    """All steps of a tensor from its first, each (main, moved, moved before); the last one's update.

    What the step before projected is kept here as a matrix, `lr * proj`, and not made anew from `moved before`.
    """
    omega, first, second = 0.0, 0.0, 0.0
    update = magnitude = pulled = [[0.0] * len(row) for row in steps[0][0]]
    for adam_step, ((main, moved, _), rate) in enumerate(zip(steps, rates, strict=True)):
        g, m = flat(main), flat(moved)
        if adam_step:  # in the first step there is nothing to learn omega from
            lengths = norm(main) * norm(pulled)
            slope = over(dot(g, flat(pulled)), lengths)
            first, second = beta1 * first + (1 - beta1) * slope, beta2 * second + (1 - beta2) * slope**2
            unbiased = first / (1 - beta1**adam_step), second / (1 - beta2**adam_step)
            omega = min(1.0, max(0.0, omega - mu * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)))
        along, size = over(dot(g, m), dot(m, m)), over(absolute_dot(g, m), dot(m, m))
        # Where the cosine is rounding, one order of summation may see a conflict and another none.
        noise = abs(along) <= 1e-9 * size
        update, magnitude = linear(
            main, moved, 1.0, -omega * along if along < 0 else 0.0, size if noise else omega * size
        )
        certain = abs(dot(g, m)) > CANCELLED * norm(main) * norm(moved)
        pulled = [[rate * along * value if certain else 0.0 for value in row] for row in moved]
    return update, magnitude
