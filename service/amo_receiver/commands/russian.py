"""What `doctor` and `check` say, in Russian: by the English sentence, with ``{names}`` where the code puts something in.

A test reads the sentences out of the code and compares: none is missing here, and none is left over.
"""

from __future__ import annotations

WORDS = {
    # doctor's table
    "part": "часть",
    "state": "состояние",
    "finding": "вывод",
    "ok": "ok",
    "warning": "предупреждение",
    "problem": "проблема",
    "settings": "настройки",
    "notifications": "уведомления",
    "mapping": "соответствия",
    "migrations": "миграции",
    "keyring": "папка ключей",
    "keys": "ключи",
    "database": "база данных",
    "pooler": "пулер",
    "durability": "сохранность",
    "schema": "схема",
    "direct": "прямой адрес",
    # check's table
    "check": "проверка",
    "expected": "ожидалось",
    "got": "получено",
    "ms": "мс",
    "FAILED": "ОШИБКА",
    "skipped": "пропуск",
    "health page": "страница health",
    "test page": "страница test",
    "form on the token URL": "форма на адрес с токеном",
    "wrong signature": "неверная подпись",
    "invalid data": "неверные данные",
    "not asked": "нет запроса",
    "no answer": "нет ответа",
}
"""Cells of tables; not looked up inside a sentence, where a source or file may have such a name."""

DOCTOR = {
    "Examining ...": "Проверяю ...",
    "DB_URL is not set: paste the line with it that `amo-webhooks dev` prints.": (
        "Переменная DB_URL не задана: вставьте строку с ней, которую печатает `amo-webhooks dev`."
    ),
    "Complete.": "Заданы полностью.",
    "They go to {services}.": "Отправляются: {services}.",
    "{file} is readable.": "{file} читается.",
    "The shipped one": "Файл из поставки",
    "{error} Correct the file that MAPPING_FILE names.": "{error} Исправьте файл, на который указывает MAPPING_FILE.",
    "They go up to {revision}.": "Последняя — {revision}.",
    "No key is loaded, so nothing is accepted: put a keyring file with a current key in AMOCRM_KEYRING_DIR.": (
        "Не загружен ни один ключ, поэтому ничего не принимается: положите в AMOCRM_KEYRING_DIR файл с ключом в состоянии current."
    ),
    "keys of {source}": "ключи {source}",
    "Revoked (generation {generation}).": "Отозваны (generation {generation}).",
    "No key is active ({keys}): write a file of a higher generation with a current key.": (
        "Нет действующего ключа ({keys}): запишите файл с большим generation и ключом в состоянии current."
    ),
    "AMOCRM_KEYRING_DIR cannot be read ({error}): create it, or let this user read it.": (
        "Папка AMOCRM_KEYRING_DIR не читается ({error}): создайте её или дайте этому пользователю право на чтение."
    ),
    "AMOCRM_KEYRING_DIR is empty: put a file for each source in it.": (
        "Папка AMOCRM_KEYRING_DIR пуста: положите в неё по файлу на каждый источник."
    ),
    "{file} is ignored: {reason}.": "Файл {file} не учитывается: {reason}.",
    "{key} expired {time} UTC": "{key}: срок истёк {time} UTC",
    "{key} begins {time} UTC": "{key}: начнёт действовать {time} UTC",
    "{key} is accepted.": "{key}: принимается.",
    "{lapse}: take it out of the keyring, or give it a later not_after.": (
        "{lapse}; уберите ключ из файла или задайте более поздний not_after."
    ),
    "{setting} must start with postgresql://.": "{setting} должна начинаться с postgresql://.",
    "{setting} cannot be read: it looks like postgresql://user:password@host:5432/name.": (
        "{setting} не разобрать: она выглядит так: postgresql://user:password@host:5432/name."
    ),
    "{address} is Postgres {number} and answers in {milliseconds} ms": "{address}: Postgres {number}, отвечает за {milliseconds} мс",
    "{answer}: upgrade it to {oldest} or later.": "{answer}: обновите его до версии {oldest} или новее.",
    "{answer}: bring service and database nearer to each other.": "{answer}: это долго, разместите сервис ближе к базе.",
    "DB_URL leads {where}.": "DB_URL ведёт {where}.",
    "through a pooler": "через пулер",
    "to Postgres itself": "прямо в Postgres",
    "{settings} off: a crash of Postgres loses what was answered 200; set to on.": (
        "Выключено: {settings}. Авария Postgres потеряет то, на что уже отвечено 200; задайте on."
    ),
    "What is answered 200 survives a crash of Postgres.": "То, на что отвечено 200, переживёт аварию Postgres.",
    "What this release needs is not known without its migrations: set MIGRATIONS_DIR.": (
        "Без папки миграций неизвестно, какая схема нужна этой версии программы: задайте MIGRATIONS_DIR."
    ),
    "The database is at {current}, this release brings {newest}": "Схема базы: {current}, у этой версии программы: {newest}",
    "no revision": "ещё нет",
    "{schema}: it fits.": "{schema} — подходит.",
    "{schema}: run `amo-webhooks migrate upgrade head`.": "{schema} — выполните `amo-webhooks migrate upgrade head`.",
    "{schema}, which is too old for it: install a later release.": "{schema} — программа слишком стара для базы, установите более новую.",
    "DB_DIRECT_URL leads through a pooler and migrations refuse that: name Postgres itself.": (
        "DB_DIRECT_URL ведёт через пулер, а миграции так не работают: укажите адрес самого Postgres."
    ),
    "Not asked: DB_POOLER leads there, and whoever migrates goes past it.": (
        "Не проверяется: к базе ведёт DB_POOLER, а кто выполняет миграции, идёт мимо него."
    ),
    "DB_DIRECT_URL leads to Postgres itself.": "DB_DIRECT_URL ведёт прямо в Postgres.",
    "{address}: not reached ({error}); {advice}.": "{address}: нет соединения ({error}); {advice}.",
    "the password is refused: correct it in the URL": "пароль не подошёл, исправьте его в адресе",
    "the user is refused: correct the URL, or pg_hba.conf": "пользователя не пустили, исправьте адрес или pg_hba.conf",
    "there is no database of this name: create it, or correct the URL": "базы с таким именем нет, создайте её или исправьте адрес",
    "Postgres has no connection left: raise max_connections, or lower DB_POOL_SIZE": (
        "у Postgres кончились соединения, увеличьте max_connections или уменьшите DB_POOL_SIZE"
    ),
    "look whether it runs, and at host, port and sslmode in the URL": (
        "посмотрите, запущена ли база, и проверьте хост, порт и sslmode в адресе"
    ),
    "Problems: {problems}, warnings: {warnings}.": "Проблем: {problems}, предупреждений: {warnings}.",
    "No problem found; warnings: {warnings}.": "Проблем нет, предупреждений: {warnings}.",
    "All is well.": "Всё в порядке.",
}

CHECK = {
    "Asking ...": "Спрашиваю ...",
    "no client id and secret are known": "не известны AMOCRM_CLIENT_ID и AMOCRM_CLIENT_SECRET",
    "no token is known": "токен не известен",
    "its database is out of reach": "его база данных недоступна",
    "it is no answer of this service": "так этот сервис не отвечает",
    "--client-id and --client-secret go together: give both, or set their variables.": (
        "--client-id и --client-secret задаются вместе: укажите оба или задайте их переменные."
    ),
    "The URL is not one of a service: it looks like http://127.0.0.1:8000.": (
        "Это не адрес сервиса: он выглядит так: http://127.0.0.1:8000."
    ),
    "Nothing answers at {url} ({error}): start the service, or name the right address.": (
        "По адресу {url} никто не отвечает ({error}): запустите сервис или укажите верный адрес."
    ),
    "; {skipped} not asked for want of credentials": ", пропущено без учётных данных: {skipped}",
    "{failed} of {asked} checks FAILED{skipped}.": "Не пройдено проверок: {failed} из {asked}{skipped}.",
    "All {asked} checks passed{skipped}.": "Пройдены все проверки: {asked}{skipped}.",
}

CONFIGURATION = {
    "AMOCRM_CLIENT_ID is set without AMOCRM_CLIENT_SECRET: set both": "AMOCRM_CLIENT_ID задана без AMOCRM_CLIENT_SECRET: задайте обе",
    "AMOCRM_CLIENT_SECRET is set without AMOCRM_CLIENT_ID: set both": "AMOCRM_CLIENT_SECRET задана без AMOCRM_CLIENT_ID: задайте обе",
    "AMOCRM_WEBHOOK_TOKEN must stand in a URL as it is: use letters, digits, '-' and '_'": (
        "AMOCRM_WEBHOOK_TOKEN становится частью адреса: используйте латинские буквы, цифры, «-» и «_»"
    ),
    "MAX_IN_FLIGHT_BYTES must be at least MAX_BODY_BYTES, or the largest body is never accepted": (
        "MAX_IN_FLIGHT_BYTES должна быть не меньше MAX_BODY_BYTES, иначе самое большое тело никогда не будет принято"
    ),
    "DB_URL is not set: it names the database, as postgresql://user:password@host:5432/name": (
        "DB_URL не задана: это адрес базы данных, postgresql://user:password@host:5432/name"
    ),
    "no credentials are set, so every delivery would be refused: "
    "set AMOCRM_CLIENT_ID with AMOCRM_CLIENT_SECRET, AMOCRM_WEBHOOK_TOKEN or AMOCRM_KEYRING_DIR": (
        "не заданы никакие ключи, поэтому любой вебхук был бы отвергнут: "
        "задайте AMOCRM_CLIENT_ID с AMOCRM_CLIENT_SECRET, AMOCRM_WEBHOOK_TOKEN или AMOCRM_KEYRING_DIR"
    ),
    "{setting} still has a placeholder: replace it by a value of your own": "в {setting} осталась заглушка: впишите своё значение",
    "{setting} begins or ends with a space or a line break, which counts as a part of it": (
        "{setting} начинается или кончается пробелом или переводом строки, и он считается частью значения"
    ),
    "{setting} is weak: use {number} random characters or more": "{setting}: слабое значение, нужно не меньше {number} случайных знаков",
    "AMOCRM_WEBHOOK_TOKEN without AMOCRM_ACCOUNT_ID is accepted for any account: set AMOCRM_ACCOUNT_ID": (
        "AMOCRM_WEBHOOK_TOKEN без AMOCRM_ACCOUNT_ID принимается от любого аккаунта: задайте AMOCRM_ACCOUNT_ID"
    ),
    "STATEMENT_TIMEOUT_MS is not below ANSWER_BUDGET_MS: one stuck statement uses the whole budget": (
        "STATEMENT_TIMEOUT_MS не меньше ANSWER_BUDGET_MS: один зависший запрос займёт всё время на ответ"
    ),
    "RETENTION_PROCESSED_DAYS is below {number}: an account that goes silent is not noticed, because the week before is pruned": (
        "RETENTION_PROCESSED_DAYS меньше {number}: если аккаунт замолчит, это не будет замечено, ведь неделя для сравнения уже удалена"
    ),
    "NOTIFY_URL: {numbers} of {total} is no address that Apprise knows": (
        "NOTIFY_URL: такого адреса Apprise не знает (номер {numbers}, всего {total})"
    ),
    ".env cannot be read ({error})": "файл .env не читается ({error})",
    "MAPPING_FILE {file} cannot be read ({error}).": "MAPPING_FILE {file} не читается ({error}).",
    "MAPPING_FILE {file}: {reason}": "MAPPING_FILE {file}: {reason}",
    "The mapping file is not usable: {reason}.": "В файле соответствий ошибка: {reason}.",
    "{entity} has no column {column} for a custom field, only {columns}": (
        "у {entity} нет столбца {column} для дополнительного поля, есть только {columns}"
    ),
    "{entity}.fields.{column} must be ids, codes or names": "{entity}.fields.{column}: ожидаются id, коды или имена",
    "accounts.{account} must be a table": "accounts.{account}: ожидается таблица",
    "{table} must be a table": "{table}: ожидается таблица",
    "No migrations in {folder}: set MIGRATIONS_DIR to the folder that holds env.py.": (
        "В папке {folder} нет миграций: укажите в MIGRATIONS_DIR папку, где лежит env.py."
    ),
}

VALUES = {
    "{setting}: Input should be a valid integer, unable to parse string as an integer": "{setting}: нужно целое число",
    "{setting}: Unable to parse input string as an integer, exceeded maximum size": "{setting}: число слишком длинное",
    "{setting}: Input should be a valid number, unable to parse string as a number": "{setting}: нужно число",
    "{setting}: Input should be a finite number": "{setting}: нужно конечное число",
    "{setting}: Input should be a valid boolean, unable to interpret input": "{setting}: нужно true или false",
    "{setting}: Input should be a valid string, unable to parse raw data as a unicode string": "{setting}: нужен текст в UTF-8",
    "{setting}: Input should be greater than or equal to {number}": "{setting}: нужно число не меньше {number}",
    "{setting}: Input should be less than or equal to {number}": "{setting}: нужно число не больше {number}",
    "{setting}: Input should be greater than {number}": "{setting}: нужно число больше {number}",
    "{setting}: String should have at most {number} characters": "{setting}: нужно не больше {number} знаков",
    "{setting}: Value should have at most {number} items after validation, not {length}": "{setting}: нужно не больше {number} знаков",
    "{setting}: Input should be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'": (
        "{setting}: нужно одно из значений DEBUG, INFO, WARNING, ERROR, CRITICAL"
    ),
    "{setting}: Input should be 'text' or 'json'": "{setting}: нужно text или json",
}
"""What pydantic says of a setting's value."""

KEYRING_FILES = {
    "it is not a regular file": "это не обычный файл",
    "it cannot be read ({error})": "он не читается ({error})",
    "it is larger than {number} bytes": "он больше {number} байт",
    "a source's name has letters, digits, dots, dashes and underscores only": (
        "имя источника состоит только из латинских букв, цифр, точек, дефисов и подчёркиваний"
    ),
    "the file is not JSON in UTF-8": "это не JSON в UTF-8",
    "the file is empty": "он пуст",
    "{field} must be {expected}": "{field}: ожидается {expected}",
    "the file": "корень",
    "a JSON object": "объект JSON",
    "an integer from 0": "целое число от 0",
    "a list": "список",
    "an object": "объект",
    "client_secret or url_key": "client_secret или url_key",
    "the integration's id, a text without '|'": "id интеграции, текст без «|»",
    "null (any account) or a list of account ids as texts": "null (любой аккаунт) или список id аккаунтов в виде текста",
    "a printable text of at most {number} bytes without surrounding spaces": (
        "печатный текст не длиннее {number} байт без пробелов по краям"
    ),
    "null or an ISO 8601 time with its zone": "null или время ISO 8601 с часовым поясом",
}

ANSWERS = {
    "Processed {number} events": "обработано событий: {number}",
    "Internal error; please report it.": "внутренняя ошибка, сообщите о ней",
    "Invalid data: {problems}": "неверные данные: {problems}",
    "Missing headers {headers}: {advice}": "нет заголовков {headers}: {advice}",
    "amoCRM itself does not sign its webhooks and needs the URL with the token, /api/webhooks/amo/{token}; "
    "anyone else sends X-Client-UUID, X-Signature and X-Account-ID": (
        "сама amoCRM вебхуки не подписывает, ей нужен адрес с токеном, /api/webhooks/amo/{token}; "
        "все остальные передают X-Client-UUID, X-Signature и X-Account-ID"
    ),
    "X-Client-UUID is not known here: compare it with AMOCRM_CLIENT_ID or the client_id in the keyring": (
        "такой X-Client-UUID здесь не известен: сравните его с AMOCRM_CLIENT_ID или с client_id в файле ключей"
    ),
    "X-Signature matches no active key: it is the hex HMAC-SHA256 of '{X-Client-UUID}|{X-Account-ID}' keyed with the "
    "integration's client secret; compare the secret with AMOCRM_CLIENT_SECRET or the keyring": (
        "X-Signature не подходит ни к одному действующему ключу: это HMAC-SHA256 строки «{X-Client-UUID}|{X-Account-ID}» "
        "в шестнадцатеричном виде на секрете интеграции; сравните секрет с AMOCRM_CLIENT_SECRET или с файлом ключей"
    ),
    "The token in the URL matches no active key: compare the webhook's URL in amoCRM with AMOCRM_WEBHOOK_TOKEN, "
    "or enter the URL that the current URL key gives for this account": (
        "токен в адресе не подходит ни к одному действующему ключу: сравните адрес вебхука в amoCRM с AMOCRM_WEBHOOK_TOKEN "
        "или впишите адрес, который даёт этому аккаунту действующий url_key"
    ),
    "X-Account-ID is longer than {number} characters: send the id of the account": (
        "X-Account-ID длиннее {number} знаков: передавайте id аккаунта"
    ),
    "The key {fingerprint} of source {source} is active only {span}: use the source's current key": (
        "ключ {fingerprint} источника {source} действует только {span}: возьмите действующий ключ источника"
    ),
    "from {begin} until {end}": "с {begin} по {end}",
    "ever": "(не ограничено)",
    "Source {source} does not serve this account: add it to `accounts` in the source's keyring": (
        "источник {source} не обслуживает этот аккаунт: добавьте аккаунт в `accounts` файла ключей"
    ),
    "No X-Client-UUID, X-Signature and X-Account-ID headers. If amoCRM itself is calling: it signs nothing and needs the URL with the "
    "token, {path}/<token>.": (
        "нет заголовков X-Client-UUID, X-Signature и X-Account-ID. Если это сама amoCRM: она ничего не подписывает, "
        "ей нужен адрес с токеном, {path}/<token>"
    ),
    "The body is for another account than its token; put that account's own URL into its webhook settings.": (
        "тело относится к другому аккаунту, чем токен: впишите в настройки вебхука адрес именно этого аккаунта"
    ),
    "The body has more than {number} bytes.": "в теле больше {number} байт",
    "The body did not arrive in time.": "тело не пришло вовремя",
    "Too many requests in flight.": "слишком много запросов одновременно",
    "Too many events in flight.": "слишком много событий одновременно",
    "The database did not answer in time.": "база данных не ответила вовремя",
    "The database is not available.": "база данных недоступна",
    "The database refused the delivery.": "база данных отвергла запрос",
}
"""What this service answers, which `check` repeats where it is not what was expected."""

SENTENCES = DOCTOR | CHECK | CONFIGURATION | VALUES | KEYRING_FILES | ANSWERS
