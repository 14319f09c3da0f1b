"""Prompts whose answers repeat the prompt, and prompts whose answers do not.

A draft from recurring text is often accepted where an answer copies text: in an extract, in an
edited file, or in an answer that quotes its sources. The model of the bench is small, so each
prompt already contains the beginning of the answer.
"""

_REPORT = (
    "The harbour of Lindholm was closed on Tuesday after a crane fell onto the northern quay. "
    "Nobody was injured, but two ships had to wait outside the bay until the following morning. "
    "The port authority expects the repairs to take three weeks and to cost four million euros. "
    "Ferries to the islands leave from the southern quay and run according to the usual timetable."
)
_RULES = (
    "Employees may work from home on up to three days a week if their manager agrees in writing. "
    "Equipment is ordered through the service desk and remains the property of the company. "
    "Travel between home and office is not reimbursed, except for meetings called at short notice."
)
_CODE = '''def load_orders(path, customer, limit=100):
    """Return the newest orders of a customer from a file."""
    orders = []
    with open(path) as file:
        for line in file:
            number, name, amount, date = line.strip().split(";")
            if name == customer:
                orders.append({"number": number, "amount": float(amount), "date": date})
    orders.sort(key=lambda order: order["date"], reverse=True)
    return orders[:limit]
'''
_TABLE = (
    "station;line;opened;passengers\nAlder Street;red;1931;18240\nBrook Hill;red;1931;9120\n"
    "Castle Gate;blue;1948;22710\nDock Road;blue;1952;7405\nElm Park;green;1967;15330\n"
)

REPEATING = (
    f"Report:\n{_REPORT}\n\nThe first two sentences of the report, word for word:\nThe harbour of",
    f"Rules:\n{_RULES}\n\nQuestion: What do the rules say about working from home and equipment?\n"
    'Answer, quoted from the rules: "Employees may work',
    f"The file before the change:\n{_CODE}\nThe file after limit was renamed to count:\n"
    "def load_orders(path, customer, count=100):\n",
    f"The table:\n{_TABLE}\nThe same table:\nstation;line;",
)
"""Prompts for an extract, an answer from a source, a code edit and a copied table."""

OTHER = (
    "Once upon a time, a young fox who lived at the edge of the forest decided that",
    "Dear Ms. Okafor, thank you for your letter. I am writing to tell you about my summer:",
    "The main reasons why cities grow along rivers are the following. First of all,",
    "My grandmother taught me how to bake bread. She always said that the secret is",
)
"""Prompts whose answers are new text."""
